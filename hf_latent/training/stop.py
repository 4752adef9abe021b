"""Stopping a training from outside, between two steps."""

import ctypes
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from hf_latent.training.run import TrainingConfig

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class StopSignal:
    """Takes note of SIGTERM and Ctrl-C; a second Ctrl-C ends the process at once.

    Signals reach processes at different moments: `requested` makes it a decision of all.
    """

    def __init__(self) -> None:
        """Install the handlers."""
        self._received = False
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        _outlive_no_launcher()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def release(self) -> None:
        """Put the earlier handlers back: from here on a signal ends the process at once."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Tell whether any process was asked to stop; all processes must ask this together."""
        if accelerator.num_processes == 1:
            return self._received
        flag = torch.tensor(float(self._received), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)


def _outlive_no_launcher() -> None:
    """Have Linux send SIGTERM to this process when `accelerate launch` dies.

    For one process it does not pass signals on: its training would go on without it, unseen.
    """
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    if sys.platform == "linux" and parent.exists():
        words = parent.read_bytes().split(b"\0")
        if all(any(part in word for word in words) for part in (b"accelerate", b"launch")):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave(config: TrainingConfig, name: str, accelerator: Accelerator) -> None:
    """End a training that has just saved a checkpoint, and say how to go on.

    Args:
        config: the run's.
        name: of the training's module.
        accelerator: its first process speaks.

    Raises:
        SystemExit: with status 0.
    """
    accelerator.end_training()
    launcher = "accelerate launch" if accelerator.num_processes > 1 else "python"
    saved = shlex.quote(str(Path(config.output_dir) / "config.yaml"))
    accelerator.print(
        f"stopped, with a checkpoint; to go on: {launcher} -m hf_latent.training.{name} "
        f"--config {saved} --resume_from_checkpoint latest"
    )
    raise SystemExit(0)
