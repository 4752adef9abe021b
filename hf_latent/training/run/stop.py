"""Stop a training by a signal: before its first step at once, later between two steps."""

import logging
import os
import shlex
import signal
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from hf_latent.training.run.late import LateValues

logger = logging.getLogger(__name__)

BEFORE_TRAINING = (
    "stopped before the first step: run the same command with --resume_from_checkpoint latest to "
    "continue; finished latent files are kept"
)


class StopSignal:
    """Handles SIGTERM and Ctrl-C of a training.

    Before `defer`, a signal ends the process at once; the first process prints a line. After it, a
    signal is noted, which `requested` reads; a second Ctrl-C ends the process at once. `accelerate
    launch` with one process does not forward signals, so the end of the launcher counts as SIGTERM.

    A stopped training exits with the status that a shell gives to a process ended by the signal, so
    that `train_vae && train_unet` does not go on: 143 for SIGTERM, 130 for Ctrl-C.

    Args:
        message: the line to print before `defer`.
    """

    def __init__(self, message: str = BEFORE_TRAINING) -> None:
        """Install the handlers; only a program's main thread can."""
        self._message, self._deferred = message, False
        self._received: int | None = None
        self._late: LateValues | None = None
        self._process = os.getpid()
        is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by the launcher
        self._launcher = os.getppid() if is_launched else None
        # Python's handlers do not run while a process waits for the first one; the default ones do.
        handler = self._receive if os.environ.get("RANK", "0") == "0" else signal.SIG_DFL
        self._before = {
            number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # this is a forked process
            os._exit(1)
        if self._deferred:
            self._received = self._received or number
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return
        # os._exit does not wait for encoding threads. Reading processes end by themselves.
        try:
            print(self._message, flush=True)
        finally:  # printing fails if the output is closed
            os._exit(128 + number)

    def defer(self, accelerator: Accelerator) -> None:
        """From here on only note signals; all processes must call it."""
        accelerator.wait_for_everyone()
        self._deferred, self._late = True, LateValues(accelerator.device)
        for number in self._before:
            signal.signal(number, self._receive)

    def release(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Return whether any process got a signal; all processes must call it after each step.

        With several processes, a signal is known one step later, in all of them at the same step.
        """
        launcher_ended = self._launcher not in (None, os.getppid())
        received = self._received is not None or launcher_ended
        if accelerator.num_processes == 1 or self._late is None:
            return received
        flag = torch.full((1,), float(received), device=accelerator.device)
        late = self._late.exchange(accelerator.reduce(flag, "sum"))
        return late is not None and bool(late.any())

    @property
    def status(self) -> int:
        """The exit status of a stopped process, also if only another process got the signal."""
        return 128 + (self._received or signal.SIGTERM)


def exit_after_checkpoint(
    stop: StopSignal, output_dir: Path, command: str, accelerator: Accelerator
) -> None:
    """Print how to resume, and exit with the status of the signal.

    Args:
        stop: got the signal.
        output_dir: the run's folder, in which a checkpoint was just saved.
        command: train-autoencoder or train-denoiser.
        accelerator: all its processes call this.
    """
    accelerator.end_training()
    launcher = "accelerate launch" if accelerator.num_processes > 1 else "python"
    config = shlex.quote(str(output_dir / "config.yaml"))
    logger.info(
        f"stopped after saving a checkpoint; to resume: {launcher} -m hf_latent {command} "
        f"--config {config} --resume_from_checkpoint latest"
    )
    raise SystemExit(stop.status)
