"""The `hf-latent` command: a table of subcommands, whose modules are imported when called.

A subcommand has one word or two, as in `hf-latent bench space`.
"""

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib import import_module
from inspect import signature
from types import FrameType
from typing import NamedTuple

from hf_latent import __version__
from hf_latent.command_output import command_output
from hf_latent.errors import UserError


class Command(NamedTuple):
    """A subcommand: the module, configuration and function that it runs.

    Attributes:
        module: imported when the subcommand is called.
        config: the name of its configuration class in the module.
        function: the name of its function in the module.
        summary: its line in `hf-latent --help`, at most 60 characters.
    """

    module: str
    config: str
    function: str
    summary: str


COMMANDS = {
    "quickstart": Command(
        "hf_latent.experiments.quickstart",
        "QuickstartConfig",
        "run_quickstart",
        "train, measure and save a model of built-in images",
    ),
    "lesson": Command(
        "hf_latent.experiments.lesson.lesson",
        "LessonConfig",
        "run_lesson",
        "measure the claims about latent space, as a page",
    ),
    "train-autoencoder": Command(
        "hf_latent.training.autoencoder",
        "AutoencoderConfig",
        "run",
        "train an autoencoder on your images",
    ),
    "encode": Command(
        "hf_latent.training.latents.encode",
        "EncodeConfig",
        "run",
        "encode images into a latent cache, for several denoisers",
    ),
    "train-denoiser": Command(
        "hf_latent.training.denoiser",
        "DenoiserConfig",
        "run",
        "train a denoiser in the latent space of an autoencoder",
    ),
    "distill": Command(
        "hf_latent.training.distillation",
        "DistillationConfig",
        "run",
        "train a student that needs few steps, from a model",
    ),
    "synthesize-ema": Command(
        "hf_latent.training.averages.synthesize",
        "SynthesizeEmaConfig",
        "synthesize_ema",
        "make a model with another weight average of a denoiser's run",
    ),
    "report": Command(
        "hf_latent.experiments.report",
        "ReportConfig",
        "report",
        "make a page of a training, or of several side by side",
    ),
    "generate": Command(
        "hf_latent.experiments.generate",
        "GenerateConfig",
        "generate",
        "generate images with a model",
    ),
    "inspect": Command(
        "hf_latent.evaluation.inspect",
        "InspectConfig",
        "inspect_autoencoders",
        "measure how much of your images autoencoders keep",
    ),
    "evaluate": Command(
        "hf_latent.experiments.evaluate_model",
        "EvaluateConfig",
        "evaluate_model",
        "measure a model and write the figures into its card",
    ),
    "sweep": Command(
        "hf_latent.experiments.sweep.sweep",
        "SweepConfig",
        "sweep",
        "compare latent sizes at equal training time, to choose one",
    ),
    "export": Command(
        "hf_latent.hub.export",
        "ExportConfig",
        "export",
        "convert a model to a stock pipeline of plain diffusers",
    ),
    "push": Command(
        "hf_latent.hub.push",
        "PushConfig",
        "push",
        "send a model or a latent cache, with its card, to the Hub",
    ),
    "doctor": Command(
        "hf_latent.experiments.doctor",
        "DoctorConfig",
        "doctor",
        "print what this machine has, and recommend settings",
    ),
    "bench loop": Command(
        "hf_latent.experiments.benchmark.loop",
        "LoopBenchmarkConfig",
        "run",
        "measure both trainings beside bare loops",
    ),
    "bench cache": Command(
        "hf_latent.experiments.benchmark.cache",
        "CacheBenchmarkConfig",
        "run",
        "measure making and reading a latent cache",
    ),
    "bench sampler": Command(
        "hf_latent.experiments.benchmark.sampler",
        "SamplerBenchmarkConfig",
        "run",
        "measure speed and FD of a model's samplers",
    ),
    "bench space": Command(
        "hf_latent.experiments.benchmark.space",
        "SpaceBenchmarkConfig",
        "run",
        "measure a denoiser on pixels and on latents",
    ),
    "bench start": Command(
        "hf_latent.experiments.benchmark.start",
        "StartBenchmarkConfig",
        "run",
        "measure the time until the first image",
    ),
}


def usage() -> str:
    """Return the text of `hf-latent --help`."""
    lines = [f"  {name:<17} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-latent COMMAND [--flags]",
            "",
            "From a folder of images to your own latent diffusion model.",
            "",
            *lines,
            "",
            "hf-latent COMMAND --help lists a command's flags.",
            "hf-latent --version prints the version.",
            "hf-latent --print_completion bash prints what completes commands in a shell.",
            "",
            "In several processes (train-autoencoder, encode, train-denoiser, distill):",
            "  accelerate launch -m hf_latent COMMAND [--flags]",
        ]
    )


@contextmanager
def importing() -> Iterator[None]:
    """Import without garbage collection, and end at once on Ctrl-C.

    The collector takes a quarter of the time of importing torch and diffusers, and finds little.
    `gc.freeze` exempts what was imported from it. In the middle of an import KeyboardInterrupt is
    no use: modules written in C turn it into another error, abort, or lose it. Both concern the
    whole process, so only the command's own process may call this.
    """
    enabled, before = gc.isenabled(), signal.getsignal(signal.SIGINT)
    gc.disable()
    if before is signal.default_int_handler:  # otherwise Ctrl-C is ignored, as in the background
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        yield
        gc.freeze()
    finally:
        signal.signal(signal.SIGINT, before)
        if enabled:
            gc.enable()


def _end_at_once(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):  # stderr may be closed
        os.write(2, b"error: interrupted\n")
    os._exit(130)


def main(arguments: Sequence[str] | None = None, command: str | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: the command line without the program; None: the process's own.
        command: the subcommand; None: the command line begins with it.

    Raises:
        SystemExit: with status 2 after a user error, 130 after Ctrl-C.
    """
    started = time.perf_counter()
    with command_output():
        words = sys.argv[1:] if arguments is None else arguments
        _run([command, *words] if command else list(words), started, arguments is None)


def _run(arguments: list[str], started: float, is_process: bool) -> None:
    """Run the subcommand.

    Args:
        arguments: the command line without the program.
        started: when the process started.
        is_process: whether this process has no other purpose.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"hf-latent {__version__}")
        return
    if name == "--print_completion":
        from hf_latent.completion import completion_script

        print(completion_script(COMMANDS, rest[0] if rest else "bash"))
        return
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name = f"{name} {rest.pop(0)}"
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}: use one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    with importing() if is_process else nullcontext():
        from hf_latent.command import run_command

        module = import_module(command.module)
    function = getattr(module, command.function)
    if "started" in signature(function).parameters:
        function = partial(function, started=started)
    run_command(getattr(module, command.config), function, rest, prog=f"hf-latent {name}")
