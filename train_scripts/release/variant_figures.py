"""Compare variants that train for equal minutes: write docs/reports/variants/NAME.json.

    OMP_NUM_THREADS=1 python train_scripts/release/variant_figures.py NAME DATA RUNS

NAME is a key of `EXPERIMENTS`, DATA has the images, RUNS is the folder of the trainings. A finished
training is not repeated. A minute is one of the processor's time: another program takes none of it.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from tqdm import tqdm

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.floor import measure_autoencoder, measure_floor
from hf_latent.experiments.quickstart import AUTOENCODER, DENOISER, RELEASED_AUTOENCODER
from hf_latent.experiments.sweep.pair import BATCH_SIZE, RealBaseline, measure_generated, train_once
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import FLOW_INFERENCE_STEPS, create_denoiser
from hf_latent.output import write_json
from hf_latent.pipeline.denoise import Guidance
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig

REPORTS = Path(__file__).parents[2] / "docs" / "reports" / "variants"
NUM_IMAGES, NUM_SEEDS = 2000, 2
# By dropped labels, at all but the highest noise levels.
GUIDED = Guidance(2.0, (0.0, 0.8))
ONLY_LAST = {"validation_steps": 10**9, "checkpointing_steps": None, "overwrite_output_dir": True}


@dataclass(frozen=True)
class Variant:
    """What a variant changes.

    Attributes:
        name: of its folder and of its row.
        autoencoder: settings of its autoencoder's training.
        denoiser: settings of its denoiser's training.
        unet: configuration entries of its denoiser, in place of those of the preset tiny.
    """

    name: str
    autoencoder: dict[str, Any] = field(default_factory=dict)
    denoiser: dict[str, Any] = field(default_factory=dict)
    unet: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Variants, and what they share.

    Attributes:
        images: settings of the images.
        variants: at least two.
        denoiser_minutes: of each denoiser; 0: only the autoencoders are compared.
        autoencoder_minutes: of each autoencoder; 0: all use the released one.
        autoencoder: settings that the autoencoders share.
    """

    images: dict[str, Any]
    variants: list[Variant]
    denoiser_minutes: float
    autoencoder_minutes: float = 0.0
    autoencoder: dict[str, Any] = field(default_factory=dict)


FASHION_MNIST: dict[str, Any] = {"resolution": 32, "resize_mode": "pad"}
PHOTOGRAPHS = {"resolution": 64, "horizontal_flip": True}
VAE = AUTOENCODER | {"reconstruction_loss": "l2", "kl_weight": 3e-4}
# The learning rate follows the square root of the batch (Malladi et al. 2022, section 4).
BATCHES = [
    Variant(f"batch-{size}", denoiser={"train_batch_size": size, "learning_rate": rate})
    for size, rate in [(32, 2e-3), (64, 2.8e-3), (128, 4e-3)]
]
EQUIVARIANCE = [
    Variant(f"equivariance-{weight:g}", autoencoder={"equivariance_weight": weight})
    for weight in (0.0, 0.25, 1.0)
]
SMALL = VAE | {"block_out_channels": [8, 16, 32]}
WIDER = VAE | {"latent_channels": 8, "block_out_channels": [8, 16, 32, 48]}
STARTS = [
    Variant(f"{start}-{rate:g}", autoencoder={"initialization": start, "learning_rate": rate})
    for start, rate in [("random", 6e-3), ("components", 6e-3), ("components", 3e-3)]
]
# The defaults before these were measured, and what was tried since.
EARLIER = {
    "initialization": "random",
    "latent_channels": 4,
    "train_batch_size": 64,
    "learning_rate": 1e-3,
    "reconstruction_loss": "l1",
    "kl_weight": 1e-3,
    "adam_weight_decay": 1e-2,
    "ema_decay": 0.999,
}
TUNED = {
    "train_batch_size": 16,
    "reconstruction_loss": "l2",
    "kl_weight": 3e-4,
    "adam_weight_decay": 1e-4,
    "ema_decay": 0.995,
}


def tried(latent_channels: int = 8, learning_rate: float = 3e-3, **changes: Any) -> Variant:
    """Return a variant of `TUNED`, named after what it changes."""
    words = [f"c{latent_channels}", f"{learning_rate:g}", *(f"{x}" for x in changes.values())]
    own = {"latent_channels": latent_channels, "learning_rate": learning_rate}
    return Variant("-".join(words), autoencoder=TUNED | own | changes)


DEFAULTS = [
    Variant("earlier", autoencoder=EARLIER),
    tried(4, 6e-3),
    tried(4),
    tried(4, train_batch_size=8),
    tried(4, 6e-3, train_batch_size=32),
    tried(8, 6e-3),
    tried(8),
    tried(8, 1.5e-3),
    tried(8, 6e-3, kl_weight=1e-3),
    tried(8, 6e-3, kl_weight=1e-4),
    tried(8, 6e-3, reconstruction_loss="l1"),
    tried(8, 6e-3, lr_warmup_ratio=0.02),
    tried(8, adam_weight_decay=1e-2),
    tried(8, ema_decay=0.999),
]
SMALLER = {"resolution": 32, "horizontal_flip": True}
RATES = [
    Variant(f"{rate:g}-{size}", autoencoder={"learning_rate": rate, "train_batch_size": size})
    for rate, size in [(5e-4, 32), (3e-4, 16), (1e-3, 16), (3e-3, 16)]
]
OBJECTIVES = [
    Variant("recipe"),
    Variant("mirrored", denoiser={"horizontal_flip": True}),
    Variant("uniform", denoiser={"timestep_sampling": "uniform"}),
    Variant("logit-std-1.4", denoiser={"timestep_logit_std": 1.4}),
    Variant("logit-mean-0.5", denoiser={"timestep_logit_mean": 0.5}),
    Variant("contrastive", denoiser={"contrastive_weight": 0.05}),
]
NETWORKS = [
    Variant("64-128"),
    Variant("64-128-scale-shift", unet={"resnet_time_scale_shift": "scale_shift"}),
    Variant("48-128", unet={"block_out_channels": (48, 128)}),
    Variant("64-112", unet={"block_out_channels": (64, 112)}),
    Variant("96-96-attention", unet={"block_out_channels": (96, 96), "attention": (True, True)}),
    Variant("dropout", unet={"dropout": 0.1}),
]
EXPERIMENTS = {
    "objective-fashion-mnist": Experiment(FASHION_MNIST, OBJECTIVES, 8),
    "network-fashion-mnist": Experiment(FASHION_MNIST, NETWORKS, 8),
    "channels-photos-32": Experiment(SMALLER, [tried(4), tried(8)], 10, 5),
    "defaults-photos-32": Experiment(SMALLER, DEFAULTS, 0, 5),
    "defaults-photos-64": Experiment(PHOTOGRAPHS, [DEFAULTS[0], tried(4), tried(8)], 0, 6),
    "small-photos-32": Experiment(SMALLER, RATES, 0, 10, TUNED | {"preset": "small"}),
    "start-fashion-mnist": Experiment(FASHION_MNIST, STARTS, 0, 4, SMALL),
    "start-photos-64": Experiment(PHOTOGRAPHS, STARTS, 0, 6, WIDER | {"train_batch_size": 8}),
    "batch": Experiment(FASHION_MNIST, BATCHES, 8),
    "equivariance-fashion-mnist": Experiment(FASHION_MNIST, EQUIVARIANCE, 10, 5, SMALL),
    "equivariance-photos-64": Experiment(PHOTOGRAPHS, EQUIVARIANCE, 12, 12, WIDER),
}


def create_changed(variant: Variant, vae: str, splits: ImageSplits) -> UNet2DModel:
    """Create the untrained denoiser of a variant that changes the preset's configuration."""
    torch.manual_seed(0)  # a training with the preset starts so too
    frozen = load_autoencoder(vae)
    return create_denoiser("tiny", frozen, splits.image_shape, splits.num_classes, **variant.unet)


def run_denoiser(
    variant: Variant,
    settings: dict[str, Any],
    folder: Path,
    splits: ImageSplits,
    real: RealBaseline,
) -> dict[str, Any]:
    """Train the denoiser of a variant and draw with it; return figures.

    Args:
        settings: those that the variants share.
        folder: of the variant.
    """
    if variant.unet:
        create_changed(variant, settings["vae"], splits).save_pretrained(folder / "start")
        settings = settings | {"pretrained_unet": str(folder / "start")}
    own = {"output_dir": str(folder / "denoiser")} | variant.denoiser
    config = DenoiserConfig(**DENOISER | settings | own)
    figures = train_once("denoiser", train_denoiser, config, splits, time.process_time)
    pipeline = load_pipeline(str(folder / "denoiser" / "model"))
    for prefix, guidance in (("", None), ("guided_", GUIDED)):
        drawn = measure_generated(
            *(pipeline, real, config.seed, NUM_SEEDS, FLOW_INFERENCE_STEPS), guidance=guidance
        )
        figures |= {prefix + name: value for name, value in drawn.items()}
    return figures | {"denoiser_parameters": pipeline.unet.num_parameters()}


def run_variant(
    experiment: Experiment, variant: Variant, data: str, folder: Path, real: RealBaseline
) -> dict[str, Any]:
    """Train a variant and measure it; return the figures of its row."""
    images = ImagesConfig(data=data, **experiment.images)
    splits = open_images(images)
    shared = experiment.images | ONLY_LAST | {"data": data}
    vae, trained = RELEASED_AUTOENCODER, dict[str, Any]()
    folder.mkdir(parents=True, exist_ok=True)
    if experiment.autoencoder_minutes:
        vae = str(folder / "autoencoder" / "model")
        autoencoder = AutoencoderConfig(
            **experiment.autoencoder | variant.autoencoder | shared,
            max_train_minutes=experiment.autoencoder_minutes,
            output_dir=str(folder / "autoencoder"),
        )
        now = time.process_time
        trained |= train_once("autoencoder", train_autoencoder, autoencoder, splits, now)
    if experiment.denoiser_minutes:
        minutes = {"max_train_minutes": experiment.denoiser_minutes}
        trained |= run_denoiser(variant, shared | minutes | {"vae": vae}, folder, splits, real)
    frozen, bar = load_autoencoder(vae), tqdm(disable=True)
    others = real.images.subset(real.images.other)
    return {
        "name": variant.name,
        **variant.autoencoder,
        **variant.denoiser,
        **variant.unet,
        **trained,
        **measure_autoencoder(
            frozen, real.held_out, real.held_out_vectors, real.extractor, BATCH_SIZE, bar
        ),
        "floor_fd": measure_floor(
            frozen, others, real.reference, real.extractor, BATCH_SIZE, images.seed, bar
        ),
    }


def run_experiment(experiment: Experiment, data: str, runs: Path) -> dict[str, Any]:
    """Train and measure all variants; return the report."""
    images = ImagesConfig(data=data, **experiment.images)
    extractor = load_feature_extractor("efficientnet-lite0")
    real, real_fd = measure_real_images(open_images(images), NUM_IMAGES, images.seed, extractor)
    rows = [run_variant(experiment, x, data, runs / x.name, real) for x in experiment.variants]
    return {
        "data": shown_name(data),
        "autoencoder_minutes": experiment.autoencoder_minutes,
        "denoiser_minutes": experiment.denoiser_minutes,
        "num_images": NUM_IMAGES,
        "num_inference_steps": FLOW_INFERENCE_STEPS,
        "guidance_scale": GUIDED.scale,
        "guidance_interval": GUIDED.interval,
        "real_fd": real_fd,
        "preprocessing": extractor.preprocessing,
        "variants": rows,
        **machine_figures(),
    }


if __name__ == "__main__":
    name, data, runs = sys.argv[1:]
    REPORTS.mkdir(parents=True, exist_ok=True)
    write_json(REPORTS / f"{name}.json", run_experiment(EXPERIMENTS[name], data, Path(runs)))
