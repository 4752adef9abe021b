"""The `hf-latent` command: one table of subcommands, each loaded only when it is called."""

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from inspect import signature
from typing import NamedTuple

from hf_latent import __version__


class Command(NamedTuple):
    """Where a subcommand lives.

    Attributes:
        module: imported when the subcommand is called.
        config: the name of its configuration there.
        function: the name of what it does there.
        summary: its line in `hf-latent --help`.
        subject: the flag that may be given by its value alone, right after the subcommand.
    """

    module: str
    config: str
    function: str
    summary: str
    subject: str | None = None


COMMANDS = {
    "quickstart": Command(
        "hf_latent.experiments.quickstart",
        "QuickstartConfig",
        "run_quickstart",
        "train, sample, measure and save a model of built-in images, in minutes",
    ),
    "generate": Command(
        "hf_latent.experiments.generate",
        "GenerateConfig",
        "generate",
        "images from a model",
    ),
    "inspect": Command(
        "hf_latent.evaluation.inspect",
        "InspectConfig",
        "inspect_autoencoder",
        "compression against information loss of an autoencoder, on your images",
    ),
    "evaluate": Command(
        "hf_latent.experiments.evaluate_model",
        "EvaluateConfig",
        "evaluate_model",
        "measure a model: reconstruction, generation, memorisation; and tell it on its card",
    ),
    "sweep": Command(
        "hf_latent.experiments.sweep.sweep",
        "SweepConfig",
        "sweep",
        "choose the latent: every factor and number of channels at equal training time",
    ),
    "export": Command(
        "hf_latent.hub.export",
        "ExportConfig",
        "export",
        "a model, for one class or none, as a stock pipeline of plain diffusers",
    ),
    "push": Command(
        "hf_latent.hub.push",
        "PushConfig",
        "push",
        "a model or a latent cache, with its card, to the Hub",
    ),
    "bench": Command(
        "hf_latent.experiments.benchmark.benchmark",
        "BenchmarkConfig",
        "run_benchmark",
        "performance ratios: hf-latent bench autoencoder, or cache",
        subject="what",
    ),
}


def usage() -> str:
    """Return the text of `hf-latent --help`."""
    lines = [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-latent COMMAND [--flags]",
            "",
            "From a folder of images to your own latent diffusion model.",
            "",
            *lines,
            "",
            "hf-latent COMMAND --help tells a command's flags. To train on your own images:",
            "accelerate launch -m hf_latent.training.autoencoder --help",
            "accelerate launch -m hf_latent.training.denoiser --help",
        ]
    )


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage, of which there is little among very many objects.

    To look for it takes a quarter of the time of importing torch and diffusers, and some more when
    the program ends; what was imported stays, so it is not looked at again. That goes for all that
    the process has: only for a process that is the command's own.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that the command line names.

    Args:
        arguments: the command line without the program; None: the process's.

    Raises:
        SystemExit: with status 2 after a user's mistake.
    """
    started = time.perf_counter()
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"hf-latent {__version__}")
        return
    if name not in COMMANDS:
        print(f"error: no command {name!r}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    command = COMMANDS[name]
    if command.subject and rest and not rest[0].startswith("-"):
        rest.insert(0, f"--{command.subject}")
    with importing() if arguments is None else nullcontext():
        from hf_latent.command import run_command

        module = import_module(command.module)
    function = getattr(module, command.function)
    if "started" in signature(function).parameters:
        function = partial(function, started=started)
    run_command(getattr(module, command.config), function, rest, prog=f"hf-latent {name}")
