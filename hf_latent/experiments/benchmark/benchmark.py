"""What the benchmarks share: their settings, the ratio of two sides, and bench.json."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from jsonargparse.typing import PositiveInt

from hf_latent.command import Settings
from hf_latent.evaluation.machine import machine_figures
from hf_latent.lock import locks_output
from hf_latent.output import check_output_dir, write_json


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Settings that all benchmarks share.

    Attributes:
        output_dir: The folder for bench.json.
        overwrite_output_dir: Accept a folder with files in it.
        rounds: How many times each side runs.
    """

    output_dir: str = "hf-latent-bench"
    overwrite_output_dir: bool = False
    rounds: PositiveInt = 7


@dataclass(frozen=True, kw_only=True)
class TrainingBenchmarkConfig(BenchmarkConfig):
    """Settings of benchmarks that train.

    Attributes:
        steps: Steps of each training in a round.
    """

    steps: PositiveInt = 40

    def training_settings(self, output_dir: Path, train_batch_size: int) -> dict[str, Any]:
        """Return the common settings of the trainings, which validate only at the end."""
        return {
            "output_dir": str(output_dir),
            "overwrite_output_dir": True,
            "train_batch_size": train_batch_size,
            "max_train_steps": self.steps,
            "validation_steps": self.steps,
            "checkpointing_steps": None,
            "max_validation_samples": train_batch_size,
        }


def round_ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return median(round_ratios(numerators, denominators))


Benchmark = TypeVar("Benchmark", bound=BenchmarkConfig)


@locks_output
def run_benchmark(
    config: Benchmark, what: str, measure: Callable[[Benchmark], dict[str, Any]]
) -> dict[str, Any]:
    """Measure, and write bench.json; return its content.

    Args:
        config: the settings.
        what: the benchmark's name in bench.json.
        measure: returns figures.

    Raises:
        UserError: if the folder cannot be written.
    """
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    report = {"what": what, **measure(config), **machine_figures()}
    write_json(output_dir / "bench.json", report)
    return report
