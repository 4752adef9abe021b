"""Stopping a training from outside: before its first step at once, then between two steps."""

import os
import shlex
import signal
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from hf_latent.training.run.batches import end_readers

BEFORE_TRAINING = (
    "stopped before the first step: the same command goes on (give it --resume_from_checkpoint "
    "latest if it has none); encoded files that are whole are kept"
)


class StopSignal:
    """What SIGTERM and Ctrl-C do; a second Ctrl-C ends the process at once.

    Until `defer` they end the process at once, the first one with exit status 0 and a line; after
    it they are noted. They reach processes at different moments: `requested` makes it a decision
    of all. For one process, `accelerate launch` does not pass signals on: its own end counts as a
    signal.

    Args:
        go_on: the line that says how to go on after an end before `defer`.
    """

    def __init__(self, go_on: str = BEFORE_TRAINING) -> None:
        """Install the handlers; only a program's main thread can."""
        self._go_on, self._received, self._deferred = go_on, False, False
        self._process = os.getpid()
        is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # the launcher sets it
        self._launcher = os.getppid() if is_launched else None
        # Python's handlers do not run while a process waits for the first one; the system's do.
        handler = self._receive if os.environ.get("RANK", "0") == "0" else signal.SIG_DFL
        self._before = {
            number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked from this one
            os._exit(1)
        if self._deferred:
            self._received = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return
        # An ordinary exit would wait for threads that encode, and for other processes.
        try:
            print(self._go_on, flush=True)
        finally:  # nobody may read the line
            end_readers()
            os._exit(0)

    def defer(self, accelerator: Accelerator) -> None:
        """Only take note of signals from here on; all processes must come here together."""
        accelerator.wait_for_everyone()
        self._deferred = True
        for number in self._before:
            signal.signal(number, self._receive)

    def release(self) -> None:
        """Put the earlier handlers back: from here on a signal ends the process at once."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Return whether any process was asked to stop; all processes must ask this together."""
        launcher_ended = self._launcher not in (None, os.getppid())
        received = self._received or launcher_ended
        if accelerator.num_processes == 1:
            return received
        flag = torch.tensor(float(received), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)


def exit_after_checkpoint(output_dir: Path, name: str, accelerator: Accelerator) -> None:
    """End a training that has just saved a checkpoint, and say how to go on.

    Args:
        output_dir: the run's folder.
        name: of the training's module.
        accelerator: its first process speaks.

    Raises:
        SystemExit: with status 0.
    """
    accelerator.end_training()
    launcher = "accelerate launch" if accelerator.num_processes > 1 else "python"
    saved = shlex.quote(str(output_dir / "config.yaml"))
    accelerator.print(
        f"stopped, with a checkpoint; to go on: {launcher} -m hf_latent.training.{name} "
        f"--config {saved} --resume_from_checkpoint latest"
    )
    raise SystemExit(0)
