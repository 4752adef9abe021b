"""Stopping a training from outside: before its first step at once, then between two steps."""

import atexit
import ctypes
import os
import shlex
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from hf_latent.training.run.accelerator import TrainingConfig
from hf_latent.training.run.batches import end_readers

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
UNWIND_SECONDS = 5
BEFORE_TRAINING = (
    "stopped before the first step: the same command goes on (give it --resume_from_checkpoint "
    "latest if it has none); encoded files that are whole are kept"
)


class StopSignal:
    """What SIGTERM and Ctrl-C do; a second Ctrl-C ends the process at once.

    Until `defer` they end the process, with exit status 0 and one line, and remove what is
    half-written, where that takes no more than 5 seconds; after it they are noted. They reach
    processes at different moments: `requested` makes it a decision of all.

    Args:
        go_on: the line that says how to go on after an end before `defer`.
    """

    def __init__(self, go_on: str = BEFORE_TRAINING) -> None:
        """Install the handlers; only a program's main thread can."""
        self._go_on, self._received, self._deferred = go_on, False, False
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._watched, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno())
        threading.Thread(target=self._watch, daemon=True).start()
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            os.register_at_fork(after_in_child=self._leave_to_parent)
        _outlive_no_launcher()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self._received = self._received, True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._deferred and not again:
            # What is written is removed on the way out; what then fails is no one's mistake.
            sys.excepthook = lambda *error: None
            threading.excepthook = lambda error: None
            sys.unraisablehook = lambda error: None
            atexit.register(self._end)
            raise SystemExit(0)

    def _watch(self) -> None:
        """End a process that does not come to `_receive`, or not out of it.

        Python calls a handler only between two of its instructions: not while it waits for another
        process or for a library's download.
        """
        while number := self._watched.recv(1):
            if number[0] in self._before:
                time.sleep(UNWIND_SECONDS)
                if not self._deferred:
                    self._end()

    def _end(self) -> None:
        try:
            if os.environ.get("RANK", "0") == "0":
                print(self._go_on, flush=True)
            end_readers()
        finally:  # whoever would read the line may have ended too
            os._exit(0)  # the ends of other processes are not waited for

    def _leave_to_parent(self) -> None:
        """In a process that was forked before `defer`: end without a word when the parent says."""
        if self._wakeup.fileno() != -1:
            self._unwatch()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.excepthook = _tell_of_no_end

    def _unwatch(self) -> None:
        signal.set_wakeup_fd(-1)
        self._wakeup.close()

    def defer(self, accelerator: Accelerator) -> None:
        """Only take note of signals from here on; all processes must come here together."""
        accelerator.wait_for_everyone()
        self._deferred = True
        self._unwatch()

    def release(self) -> None:
        """Put the earlier handlers back: from here on a signal ends the process at once."""
        self._unwatch()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Tell whether any process was asked to stop; all processes must ask this together."""
        if accelerator.num_processes == 1:
            return self._received
        flag = torch.tensor(float(self._received), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)


def _tell_of_no_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show what went wrong in a reading process, unless it is that its training has ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


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
