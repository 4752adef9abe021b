"""`hf-latent bench`: performance ratios, measured by alternating the two sides."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from hf_latent.command import Settings
from hf_latent.evaluation.machine import machine_figures
from hf_latent.lock import locks_output
from hf_latent.output import check_output_dir, write_json


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Measure performance ratios by alternating their two sides, and write bench.json.

    Attributes:
        what: autoencoder compares the training of fashion-mnist-f4 (with data, clipping, averaging
            and logging, without validation and checkpoints) with a bare loop of the same forward,
            backward and optimizer on tensors in memory. cache compares reading a latent cache with
            tensors in memory; making one with the bare forward pass, of fashion-mnist-f4 and of
            preset small at 64x64; and training a denoiser on one with encoding at every step.
        output_dir: The folder for bench.json and the temporary caches.
        overwrite_output_dir: Accept a folder with files in it.
        rounds: How many times each side runs.
        steps: Steps of each training in a round.
        train_batch_size: Images a step.
        num_latents: Number of latents in the larger cache to read, 4x8x8 each: 2 kB a latent.
        num_images: Number of images to encode in a round.
    """

    what: Literal["autoencoder", "cache"]
    output_dir: str = "hf-latent-bench"
    overwrite_output_dir: bool = False
    rounds: PositiveInt = 7
    steps: PositiveInt = 40
    train_batch_size: PositiveInt = 32
    num_latents: PositiveInt = 1_000_000
    num_images: PositiveInt = 8000

    def training_settings(self, output_dir: Path) -> dict[str, Any]:
        """Return the common settings of the trainings, which validate only at the end."""
        return {
            "output_dir": str(output_dir),
            "overwrite_output_dir": True,
            "train_batch_size": self.train_batch_size,
            "max_train_steps": self.steps,
            "validation_steps": self.steps,
            "checkpointing_steps": None,
            "max_validation_samples": self.train_batch_size,
        }


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the sides alternately; each runs first equally often.

    Args:
        sides: functions by name; each returns its rate.
        rounds: number of runs of each side, after one for warm-up.

    Returns:
        The rates by name, in order.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in sorted(sides, reverse=turn % 2 == 0):
            rate = sides[name]()
            if turn:
                rates[name].append(rate)
    return rates


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


@locks_output
def run_benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json; return its content.

    Raises:
        UserError: if the folder cannot be written.
    """
    from hf_latent.experiments.benchmark.autoencoder import benchmark_autoencoder
    from hf_latent.experiments.benchmark.cache import benchmark_cache

    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    measure = {"autoencoder": benchmark_autoencoder, "cache": benchmark_cache}[config.what]
    report = {"what": config.what, **measure(config), **machine_figures()}
    write_json(output_dir / "bench.json", report)
    return report
