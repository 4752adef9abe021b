"""Speed of making a latent cache, and of training on one."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.evaluation.timing import alternate
from hf_latent.experiments.benchmark.benchmark import (
    TrainingBenchmarkConfig,
    median_ratio,
    run_benchmark,
)
from hf_latent.experiments.benchmark.reading import READ_BATCH, benchmark_reading
from hf_latent.experiments.quickstart import IMAGES, RELEASED_AUTOENCODER
from hf_latent.models.frozen import freeze
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.models.presets import create_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents

FEWER_LATENTS, FEWER_IMAGES = 20, 16  # divisors: of the small cache, of the images at 64x64
READ_ROUNDS = 3  # reading rounds for each round of the others: they are short and vary much
SETTLING_BYTES = 31 * 2**20


@dataclass(frozen=True, kw_only=True)
class CacheBenchmarkConfig(TrainingBenchmarkConfig):
    """Measure making and reading a latent cache, and write bench.json.

    Reading is compared with tensors in memory. Making a cache is compared with the bare forward
    pass, of fashion-mnist-f4 and of preset small at 64x64. Training a denoiser on a cache is
    compared with encoding at every step.

    Attributes:
        num_latents: Number of latents in the larger cache to read, 4x8x8 each: 2 kB a latent.
        num_images: Number of images to encode in a round.
        train_batch_size: Images a step of a training.
    """

    num_latents: PositiveInt = 1_000_000
    num_images: PositiveInt = 8000
    train_batch_size: PositiveInt = 32


def benchmark_encoding(
    images_config: ImagesConfig, vae: Autoencoder, folder: Path, rounds: int, name: str
) -> dict[str, Any]:
    """Compare making a cache with the encoder alone.

    Making a cache includes reading and decoding the images, in another process, and writing and
    checksums.

    Args:
        folder: for the cache.
        rounds: number of runs of each side.
        name: prefix of the figures.

    Returns:
        Figures for bench.json.
    """
    splits = open_images(images_config, keep_in_memory=False)
    settings = EncodeConfig(
        **vars(images_config),
        vae=name,
        output_dir=str(folder),
        max_validation_samples=1,
        dataloader_num_workers=1,
    )
    images = splits.train.read()
    # glibc reuses memory blocks up to the size of the largest freed one (32 MB at most). A forward
    # pass that must allocate memory is a third slower, so free a large block before both sides.
    torch.empty(SETTLING_BYTES, dtype=torch.uint8)

    def cache() -> float:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=folder) as made:
            encode_latents(replace(settings, output_dir=f"{made}/cache"), splits, vae)
            return (len(images) + 1) / (time.perf_counter() - start)

    @torch.no_grad()
    def bare() -> float:
        start = time.perf_counter()
        for batch in images.split(settings.encode_batch_size):
            vae.encode(batch.to(vae.device)).latent_dist.mean.cpu()
        return len(images) / (time.perf_counter() - start)

    rates = alternate({"cache": cache, "bare": bare}, rounds)
    return {
        f"{name}_ratio_median": median_ratio(rates["cache"], rates["bare"]),
        f"{name}_images": len(images),
        f"{name}_image_shape": splits.image_shape,
        f"{name}_cache_images_per_second": rates["cache"],
        f"{name}_bare_images_per_second": rates["bare"],
    }


def benchmark_training(
    config: CacheBenchmarkConfig, folder: Path, splits: ImageSplits
) -> dict[str, Any]:
    """Compare training a denoiser on a cache with encoding at every step; return figures."""

    def train(encode_every_step: bool) -> float:
        settings = DenoiserConfig(
            **IMAGES,
            **config.training_settings(folder / "run", config.train_batch_size),
            vae=RELEASED_AUTOENCODER,
            encode_every_step=encode_every_step,
            max_train_samples=config.num_images,
        )
        return train_denoiser(settings, splits).images_per_second

    sides = {"cache": lambda: train(False), "every_step": lambda: train(True)}
    rates = alternate(sides, config.rounds)
    return {
        "training_ratio_median": median_ratio(rates["cache"], rates["every_step"]),
        "training_cache_images_per_second": rates["cache"],
        "training_every_step_images_per_second": rates["every_step"],
        "steps": config.steps,
        "train_batch_size": config.train_batch_size,
    }


def benchmark_cache(config: CacheBenchmarkConfig) -> dict[str, Any]:
    """Measure reading, encoding and training; return figures for bench.json."""
    images = ImagesConfig(**IMAGES, max_train_samples=config.num_images)
    # A usual start for one's own images; each image takes much longer.
    larger = ImagesConfig(
        data=images.data, resolution=64, max_train_samples=max(1, config.num_images // FEWER_IMAGES)
    )
    small = create_autoencoder("small", 1, 64)
    vae = load_autoencoder(RELEASED_AUTOENCODER)
    for model in (small, vae):
        freeze(model)
    figures: dict[str, Any] = {"rounds": config.rounds, "read_batch_size": READ_BATCH}
    with tempfile.TemporaryDirectory(dir=config.output_dir) as name:
        folder = Path(name)
        rows = max(READ_BATCH, config.num_latents // FEWER_LATENTS)
        rounds = READ_ROUNDS * config.rounds
        figures |= benchmark_reading(folder / "small", rows, rounds, "reading")
        figures |= benchmark_reading(
            folder / "large", max(rows, config.num_latents), rounds, "reading_large"
        )
        (folder / "made").mkdir()
        figures |= benchmark_encoding(images, vae, folder / "made", config.rounds, "encoding")
        figures |= benchmark_encoding(
            larger, small, folder / "made", config.rounds, "encoding_small"
        )
        figures |= benchmark_training(config, folder, open_images(images, keep_in_memory=False))
    for what, key in (
        ("reading a cache against memory", "reading_ratio_median"),
        (f"  of {figures['reading_large_latents']:,} latents", "reading_large_ratio_median"),
        ("  as a stream", "reading_large_stream_ratio_median"),
        ("making a cache against the forward pass", "encoding_ratio_median"),
        ("  of preset small at 64x64", "encoding_small_ratio_median"),
        ("training on a cache against encoding at every step", "training_ratio_median"),
    ):
        print(f"{what}: {figures[key]:.3f}")
    return figures


def run(config: CacheBenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json; return its content."""
    return run_benchmark(config, "cache", benchmark_cache)
