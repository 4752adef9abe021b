"""How long a person waits for the first image: new processes, and what they import."""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from hf_latent.errors import UserError
from hf_latent.evaluation.timing import alternate
from hf_latent.experiments.benchmark.benchmark import BenchmarkConfig, run_benchmark
from hf_latent.experiments.generate import RELEASED
from hf_latent.models.load import find_model

PARTS = "from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, UNet2DModel"
PIPELINE = "from hf_latent import LatentDiffusionPipeline as Pipeline"
DRAW = f"import sys; {PIPELINE}; Pipeline.from_pretrained(sys.argv[1])()"
SHORTEST_IMPORT_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class StartBenchmarkConfig(BenchmarkConfig):
    """Time new processes from start to end, and write bench.json.

    They are Python alone, `hf-latent --help`, `import hf_latent`, the import of the classes of
    diffusers that the pipeline needs, the import of the pipeline, and a first image: by Python, and
    by `hf-latent generate`. bench.json also says which packages the latter imports, and how long
    that takes.

    Attributes:
        model: The folder of a model, the name of a released one, or an id on the Hub.
    """

    model: str = RELEASED


def list_programs(model: str, picture: str) -> dict[str, tuple[str, ...]]:
    """Return Python's arguments for each program, by name.

    Args:
        model: the model's folder, or its id on the Hub.
        picture: the file that `generate` writes.
    """
    generate = ("generate", "--num_images", "1", "--model", model, "--output", picture)
    return {
        "python": ("-c", "pass"),
        "help": ("-m", "hf_latent", "--help"),
        "import": ("-c", "import hf_latent"),
        "diffusers": ("-c", PARTS),
        "pipeline": ("-c", PIPELINE),
        "first_image": ("-c", DRAW, model),
        "generate": ("-m", "hf_latent", *generate),
    }


def run_python(arguments: tuple[str, ...]) -> str:
    """Run Python to its end; return its stderr.

    Raises:
        UserError: with the last line of stderr, if Python fails.
    """
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if process.returncode:
        raise UserError(process.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
    return process.stderr


def time_python(arguments: tuple[str, ...]) -> float:
    """Return the seconds of a new process of Python."""
    start = time.perf_counter()
    run_python(arguments)
    return time.perf_counter() - start


def sum_imports(report: str) -> dict[str, float]:
    """Return how many seconds each package's modules take to import, without what they import.

    Args:
        report: lines of `python -X importtime`, `import time: SELF | CUMULATIVE | MODULE` in
            microseconds, among others.

    Returns:
        By package, longest first; those of at least 0.01 seconds.
    """
    microseconds: Counter[str] = Counter()
    for line in report.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdigit():
            module = rest.partition("|")[2].strip()
            microseconds[module.partition(".")[0]] += int(own)
    seconds = {package: count / 1e6 for package, count in microseconds.most_common()}
    return {package: x for package, x in seconds.items() if x >= SHORTEST_IMPORT_SECONDS}


def benchmark_start(config: StartBenchmarkConfig) -> dict[str, Any]:
    """Run all programs alternately; return figures for bench.json."""
    with tempfile.TemporaryDirectory() as folder:
        programs = list_programs(find_model(config.model), f"{folder}/image.png")
        sides = {name: partial(time_python, x) for name, x in programs.items()}
        seconds = alternate(sides, config.rounds)
        imports = sum_imports(run_python(("-X", "importtime", *programs["generate"])))
    for name, values in seconds.items():
        print(f"{name:<12} {median(values):5.2f} s ({min(values):.2f} to {max(values):.2f})")
    longest = [f"{package} {x:.2f} s" for package, x in imports.items()]
    print(f"generate imports {', '.join(longest[:5])}")
    return {
        **{f"{name}_seconds_median": median(values) for name, values in seconds.items()},
        **{f"{name}_seconds": values for name, values in seconds.items()},
        "import_seconds_by_package": imports,
        "rounds": config.rounds,
    }


def run(config: StartBenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json; return its content."""
    return run_benchmark(config, "start", benchmark_start)
