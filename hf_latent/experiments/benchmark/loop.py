"""Speed of both trainings, compared with bare loops and with the machine's matrix products."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from hf_latent.data.device import fastest_device
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.evaluation.costs import Costs, product_rate
from hf_latent.evaluation.timing import alternate, seconds_per_call
from hf_latent.experiments.benchmark.benchmark import (
    TrainingBenchmarkConfig,
    round_ratios,
    run_benchmark,
)
from hf_latent.experiments.benchmark.shares import time_operations, time_parts
from hf_latent.experiments.quickstart import IMAGES, RELEASED_AUTOENCODER
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import create_scheduler
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.dry_run.bare import BareLoop, bare_autoencoder, bare_denoiser
from hf_latent.training.run.accelerator import ImageTrainingConfig, default_precision
from hf_latent.training.start.autoencoder import start_autoencoder
from hf_latent.training.start.denoiser import start_denoiser

TRAIN_IMAGES = 2000
# What the recipe fashion_mnist-32/vae.yaml says about the work of a step.
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": [16, 32, 64],
    "reconstruction_loss": "l2",
    "kl_weight": 3e-4,
}
DENOISER: dict[str, Any] = {"vae": RELEASED_AUTOENCODER, "preset": "tiny", "objective": "flow"}


@dataclass(frozen=True, kw_only=True)
class LoopBenchmarkConfig(TrainingBenchmarkConfig):
    """Compare both trainings with bare loops, and write bench.json.

    The autoencoder is that of the recipe fashion_mnist-32, the denoiser is the preset tiny. There
    are no validation and no checkpoints. A bare loop is the least that trains the same model: the
    forward pass and the loss, the backward pass, clipping and the optimizer, always on the same
    tensors in memory. It reads and draws nothing, averages no weights, and neither checks nor logs.
    Its operations a second are compared with those of a product of large matrices.

    Attributes:
        train_batch_sizes: Images a step, each measured. By default 32.
    """

    train_batch_sizes: list[PositiveInt] | None = None


@dataclass(frozen=True)
class Training:
    """A training, its settings and its bare loop."""

    config: type[ImageTrainingConfig]
    settings: dict[str, Any]
    train: Callable[..., Any]
    bare: Callable[..., BareLoop]


TRAININGS = {
    "autoencoder": Training(AutoencoderConfig, AUTOENCODER, train_autoencoder, bare_autoencoder),
    "denoiser": Training(
        DenoiserConfig,
        DENOISER,
        train_denoiser,
        partial(bare_denoiser, create_scheduler(DENOISER["objective"])),
    ),
}


def bare_loop(name: str, config: Any, splits: ImageSplits, device: torch.device) -> BareLoop:
    """Return a training's bare loop.

    Args:
        name: a key of `TRAININGS`.
        config: the settings of the training.
        splits: the images. Only their shape and their classes are used.
        device: that trains.
    """
    shape = splits.image_shape
    if name == "autoencoder":
        models: dict[str, nn.Module] = {"vae": start_autoencoder(config, shape)}
    else:
        vae, num_classes = load_autoencoder(config.vae), len(splits.id2label or ())
        models = {"vae": vae, "unet": start_denoiser(config, vae, shape, num_classes)}
    for model in models.values():
        model.to(device)
    return TRAININGS[name].bare(config, models, (config.train_batch_size, *shape), device)


def measure_training(
    name: str, train_batch_size: int, splits: ImageSplits, config: LoopBenchmarkConfig
) -> dict[str, Any]:
    """Measure one training at one batch size; return figures for bench.json.

    Args:
        name: a key of `TRAININGS`.
        train_batch_size: images a step.
        splits: the images.
        config: the settings.
    """
    training, device = TRAININGS[name], fastest_device()
    precision: Any = default_precision() or "no"
    with tempfile.TemporaryDirectory() as folder:
        settings = training.config(
            **IMAGES,
            **training.settings,
            **config.training_settings(Path(folder) / "run", train_batch_size),
            max_train_samples=TRAIN_IMAGES,
            mixed_precision=precision,
        )
        images = config.steps * train_batch_size

        def bare() -> float:
            loop = bare_loop(name, settings, splits, device)
            return images / seconds_per_call(partial(loop.run, config.steps))

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        rates = alternate(
            {
                "trainer": lambda: training.train(settings, splits).images_per_second,
                "bare": bare,
                "product": partial(product_rate, dtype, device),
            },
            config.rounds,
        )
        parts = time_parts(lambda: training.train(settings, splits))
    loop = bare_loop(name, settings, splits, device)
    loop.step()
    with Costs() as costs:
        loop.step()
    bare_rates = [x * costs.operations / train_batch_size for x in rates["bare"]]
    return {
        "training": name,
        "train_batch_size": train_batch_size,
        "mixed_precision": precision,
        "trainer_images_per_second": rates["trainer"],
        "bare_images_per_second": rates["bare"],
        "ratios": (ratios := round_ratios(rates["trainer"], rates["bare"])),
        "ratio_median": median(ratios),
        "step_operations": costs.operations,
        "product_operations_per_second": rates["product"],
        "product_ratio_median": median(round_ratios(bare_rates, rates["product"])),
        "trainer_step_shares": parts,
        "bare_step_shares": time_operations(partial(loop.run, 5)),
    }


def describe_training(point: dict[str, Any]) -> list[str]:
    """Return lines about a training: its speed, and where a step's time goes."""

    def shares(key: str) -> str:
        return ", ".join(f"{name} {share:.3f}" for name, share in point[key].items())

    rate, ratios = median(point["trainer_images_per_second"]), point["ratios"]
    return [
        f"{point['training']}, batch {point['train_batch_size']}: {rate:.1f} images/s, "
        f"{point['ratio_median']:.3f} of a bare loop ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"which runs at {point['product_ratio_median']:.3f} of a matrix product's rate",
        f"  a step: {shares('trainer_step_shares')}",
        f"  operations of a bare step: {shares('bare_step_shares')}",
    ]


def benchmark_loop(config: LoopBenchmarkConfig) -> dict[str, Any]:
    """Measure both trainings at every batch size; return figures for bench.json."""
    splits = open_images(ImagesConfig(**IMAGES, max_train_samples=TRAIN_IMAGES))
    points = []
    for name in TRAININGS:
        for train_batch_size in config.train_batch_sizes or [32]:
            points.append(measure_training(name, train_batch_size, splits, config))
            print("\n".join(describe_training(points[-1])), flush=True)
    return {"points": points, "rounds": config.rounds, "steps": config.steps}


def run(config: LoopBenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json; return its content."""
    return run_benchmark(config, "loop", benchmark_loop)
