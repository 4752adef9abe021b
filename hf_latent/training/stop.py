"""Stopping a training from outside, between two steps."""

import shlex
import signal
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from hf_latent.training.run import TrainingConfig


class StopSignal:
    """Takes note of SIGTERM and Ctrl-C; a second Ctrl-C ends the process at once.

    Signals reach processes at different moments: `requested` makes it a decision of all.
    """

    def __init__(self) -> None:
        """Install the handlers."""
        self._received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Tell whether any process was asked to stop; all processes must ask this together."""
        if accelerator.num_processes == 1:
            return self._received
        flag = torch.tensor(float(self._received), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)


def leave(config: TrainingConfig, module: str, accelerator: Accelerator) -> None:
    """End a training that has just saved a checkpoint, and say how to go on.

    Args:
        config: the run's.
        module: what trained, as `accelerate launch -m` takes it.
        accelerator: its first process speaks.

    Raises:
        SystemExit: with status 0.
    """
    accelerator.end_training()
    saved = shlex.quote(str(Path(config.output_dir) / "config.yaml"))
    accelerator.print(
        f"stopped, with a checkpoint; to go on: accelerate launch -m {module} "
        f"--config {saved} --resume_from_checkpoint latest"
    )
    raise SystemExit(0)
