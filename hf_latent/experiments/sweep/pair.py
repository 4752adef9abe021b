"""One pair of a sweep: train its autoencoder and its denoiser, and measure both.

    f4-c4/
        autoencoder/  denoiser/          the runs' folders
        autoencoder.json  denoiser.json  figures of each training, written at its end
        training.log                     output of the trainings
        figures.json                     written last: the pair is finished

Each file is whole or absent, so a resumed sweep knows what is done.
"""

import re
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.images.pixels import to_uint8
from hf_latent.data.latents.manifest import CACHE_FILES
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.images.sampling import count_evaluations, load_pipeline, sample_images
from hf_latent.evaluation.inspection.latent_figures import PosteriorRate, rate_figures
from hf_latent.evaluation.measures.floor import measure_autoencoder, measure_floor
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.experiments.quickstart import AUTOENCODER, DENOISER
from hf_latent.experiments.sweep.config import Pair, SweepConfig
from hf_latent.experiments.sweep.plan import (
    BATCH_SIZE,
    FOLD_SAMPLES,
    VALIDATION_IMAGES,
    Plan,
    create_models,
)
from hf_latent.models.load import Autoencoder
from hf_latent.models.presets import Compression, measure_compression
from hf_latent.output import read_json, remove_written, write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.run.clock import TrainingSummary
from hf_latent.training.run.folder import RUN_FILES, list_checkpoints, remove_checkpoint

CHECKPOINTING_STEPS = 200
# Validate only at the end: validation during a training would use up its minutes.
VALIDATION_STEPS = 10**9
PAIR_FILES = re.compile(
    rf"(autoencoder|denoiser)/({RUN_FILES.pattern})|(autoencoder|denoiser|figures)\.json|"
    r"training\.log",
    re.ASCII,
)


@dataclass(frozen=True)
class RealBaseline:
    """Real images and their vectors, with which every pair is compared.

    Attributes:
        images: the real images.
        held_out: held-out images to reconstruct.
        held_out_vectors: their vectors, in blocks.
        reference: vectors of the reference images, in blocks.
        extractor: computes the vectors.
    """

    images: RealImages
    held_out: ImageDataset
    held_out_vectors: list[torch.Tensor]
    reference: list[torch.Tensor]
    extractor: FeatureExtractor


def latent_kl_weight(kl_weight: float, compression: Compression) -> float:
    """Return the trainer's weight of the KL for LDM's weight.

    The trainer's loss is `D + w K`: D is the mean error of an image value, K the mean KL of a
    latent value. With M image values and N latent values, a nat of an image costs `w M / N` of its
    summed error: LDM's weight. If w were equal for all pairs, small latents would pay more for a
    bit than large ones. At an equal price, every autoencoder stops at the same slope `dD/dR` of its
    rate-distortion curve (Alemi et al. 2018, section 3), so pairs differ in what their shape can
    hold.

    Args:
        kl_weight: LDM's, equal for all pairs.
    """
    return kl_weight / compression.ratio


def training_configs(
    config: SweepConfig, plan: Plan, pair: Pair, folder: Path, compression: Compression
) -> tuple[AutoencoderConfig, DenoiserConfig]:
    """Return the settings of a pair's trainings: quickstart's, with the released recipe's L2 loss.

    The released recipe's weight of the KL, 3e-4 at 4 times fewer values, is LDM's 1.2e-3.
    """
    shared = {
        **asdict(config.images_config()),
        "overwrite_output_dir": True,
        "resume_from_checkpoint": "latest",
        "checkpointing_steps": CHECKPOINTING_STEPS,
        "checkpoints_total_limit": 1,
        "validation_fingerprint": plan.validation_fingerprint,
        "validation_steps": VALIDATION_STEPS,
        "max_validation_samples": VALIDATION_IMAGES,
    }
    autoencoder = {
        "reconstruction_loss": "l2",
        "kl_weight": latent_kl_weight(config.ldm_kl_weight, compression),
        "preset": config.preset,
        "latent_channels": pair.channels,
        "block_out_channels": list(config.widths(pair.factor)),
        "fold_samples": FOLD_SAMPLES,
        "max_train_minutes": plan.autoencoder_minutes,
        "output_dir": str(folder / "autoencoder"),
    }
    denoiser = {
        "vae": str(folder / "autoencoder" / "model"),
        "preset": config.denoiser_preset,
        "max_train_minutes": plan.denoiser_minutes,
        "output_dir": str(folder / "denoiser"),
    }
    return (
        AutoencoderConfig(**AUTOENCODER | shared | autoencoder),
        DenoiserConfig(**DENOISER | shared | denoiser),
    )


def train_once(
    name: str,
    train: Callable[..., TrainingSummary],
    config: AutoencoderConfig | DenoiserConfig,
    splits: ImageSplits,
    now: Callable[[], float],
) -> dict[str, Any]:
    """Train, or read the figures of a finished training.

    Args:
        name: of the training; its figures are in NAME.json beside its run's folder.

    Returns:
        Figures; each key starts with the name. Images a second are those of the whole training,
        also if it was resumed.
    """
    folder = Path(config.output_dir).parent
    path = folder / f"{name}.json"
    if not path.is_file():
        with open(folder / "training.log", "a") as log, redirect_stdout(log):
            summary = train(config, splits, now=now)
        figures = {
            "steps": summary.steps,
            "minutes": summary.seconds / 60,
            "train_images_per_second": summary.steps * config.train_batch_size / summary.seconds,
            "train_loss": summary.train_loss,
            "held_out_loss": list(summary.validation_losses.values())[-1],
        }
        write_json(path, {f"{name}_{key}": value for key, value in figures.items()})
    return read_json(path)


@torch.no_grad()
def measure_rate(
    vae: Autoencoder, held_out: ImageDataset, compression: Compression
) -> dict[str, float]:
    """Measure the bits of the posterior, see `PosteriorRate`.

    The KL is an upper bound on the information in the latent (Alemi et al. 2018, section 2; Hoffman
    and Johnson 2016). The rate is the tightest such bound with one normal for each channel.
    """
    rate = PosteriorRate(vae)
    for rows in torch.arange(len(held_out)).split(BATCH_SIZE):
        rate.update(encode_posteriors(vae, held_out.read(rows).to(vae.device)))
    bits = {f"{name}_per_image": value for name, value in rate.bits_per_image().items()}
    figures = rate_figures(rate, compression)
    return bits | {x: figures[x] for x in ("kl_bits_per_pixel", "rate_bits_per_pixel")}


def measure_generated(
    pipeline: LatentDiffusionPipeline,
    real: RealBaseline,
    seed: int,
    num_seeds: int,
    num_inference_steps: int,
    now: Callable[[], float] = time.perf_counter,
    guidance: Guidance | None = None,
) -> dict[str, Any]:
    """Generate images with the reference's labels, and compare them with it.

    Args:
        real: the reference.
        seed: of the first image; each image has its own seed.
        num_seeds: number of times to generate as many images as the reference has.
        guidance: None: no guidance.

    Returns:
        Flat figures.
    """
    reference = real.images.subset(real.images.reference)
    labels = None
    if pipeline.num_classes is not None and reference.labels is not None:
        labels = reference.labels.tolist()
    distances, seconds = [], 0.0
    count, guidance = len(reference), guidance or Guidance()
    interval = guidance.interval
    if guidance.scale != 1 and interval is None:
        interval = (0.0, 1.0)  # the pipeline takes None for the model's own
    asked = guidance.scale, num_inference_steps, interval
    for first in range(seed, seed + num_seeds * count, count):
        start = now()
        samples = sample_images(pipeline, labels, count, first, BATCH_SIZE, *asked)
        seconds += now() - start
        blocks = [real.extractor(to_uint8(x * 2 - 1)) for x in samples.split(BATCH_SIZE)]
        distances.append(frechet_distance(blocks, real.reference))
    return {
        "generated_fd": sum(distances) / num_seeds,
        "generated_fd_by_seed": distances,
        "generated_fd_spread": max(distances) - min(distances),
        "sampling_images_per_second": num_seeds * count / seconds,
        "denoiser_evaluations_per_image": count_evaluations(
            pipeline, num_inference_steps, guidance
        ),
    }


def run_pair(
    config: SweepConfig,
    plan: Plan,
    pair: Pair,
    splits: ImageSplits,
    real: RealBaseline,
    now: Callable[[], float],
) -> dict[str, Any]:
    """Train and measure a pair, or resume it.

    Returns:
        The content of its figures.json.

    Raises:
        UserError: if a training fails.
    """
    folder = Path(config.output_dir) / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "figures.json").is_file():
        with torch.device("meta"):
            models = create_models(config, pair, splits.image_shape, splits.num_classes)
        compression = measure_compression(models[0], splits.image_shape)
        first, second = training_configs(config, plan, pair, folder, compression)
        trained = {
            **train_once("autoencoder", train_autoencoder, first, splits, now),
            **train_once("denoiser", train_denoiser, second, splits, now),
        }
        pipeline = load_pipeline(str(folder / "denoiser" / "model"))
        vae, extractor, bar = pipeline.vae, real.extractor, tqdm(disable=True)
        others = real.images.subset(real.images.other)
        start = now()
        figures = {
            "name": pair.name,
            "factor": pair.factor,
            "latent_channels": pair.channels,
            "latent_shape": compression.latent_shape,
            "compression_ratio": compression.ratio,
            "kl_weight_per_latent_value": first.kl_weight,
            "autoencoder_parameters": models[0].num_parameters(),
            "denoiser_parameters": models[1].num_parameters(),
            **trained,
            **measure_rate(vae, real.held_out, compression),
            **measure_autoencoder(
                vae, real.held_out, real.held_out_vectors, extractor, BATCH_SIZE, bar
            ),
            "floor_fd": measure_floor(
                vae, others, real.reference, extractor, BATCH_SIZE, config.seed, bar
            ),
            **measure_generated(
                pipeline, real, config.seed, config.num_seeds, config.num_inference_steps, now
            ),
            "measuring_minutes": (now() - start) / 60,
        }
        write_json(folder / "figures.json", figures)
    # A finished pair no longer needs its checkpoints and latent cache.
    for name in ("autoencoder", "denoiser"):
        for checkpoint in list_checkpoints(folder / name):
            remove_checkpoint(checkpoint)
    remove_written(folder / "denoiser" / "latents", CACHE_FILES)
    return read_json(folder / "figures.json")
