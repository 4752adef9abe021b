"""`hf-latent bench`: performance ratios, the two sides of each in turn within one run."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from hf_latent.command import Settings
from hf_latent.evaluation.machine import machine_figures
from hf_latent.output import check_output_dir, write_json


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Measure performance ratios, the two sides of each in turn, and write them to bench.json.

    Attributes:
        what: autoencoder: the training of fashion-mnist-f4 (data, clipping, averaging and logging
            included, validation and checkpoints not) against a bare loop of the same forward,
            backward and optimizer on tensors in memory. cache: reading a latent cache against
            tensors in memory, making one against the bare forward pass, of fashion-mnist-f4 and of
            preset small at 64x64, and training a denoiser on one against encoding at every step.
        output_dir: for bench.json, and for the caches while they are read.
        overwrite_output_dir: accept a folder with files in it.
        rounds: how often each side runs.
        steps: of each training in a round.
        train_batch_size: images a step.
        num_latents: of the larger cache that is read, 8x8x4 each: 2 kB a latent.
        num_images: that are encoded in a round.
    """

    what: Literal["autoencoder", "cache"]
    output_dir: str = "hf-latent-bench"
    overwrite_output_dir: bool = False
    rounds: PositiveInt = 7
    steps: PositiveInt = 40
    train_batch_size: PositiveInt = 32
    num_latents: PositiveInt = 1_000_000
    num_images: PositiveInt = 8000


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run some sides in turn; each comes first equally often.

    Args:
        sides: by name; each returns its rate.
        rounds: how often each runs, after a round of warm-up.

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
    """Return the median of the rounds' ratios."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def run_benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json.

    Args:
        config: what, and how long.

    Returns:
        The content of bench.json.

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
