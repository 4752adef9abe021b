import os
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_latent.training.run.stop import StopSignal, exit_after_checkpoint


@pytest.fixture
def stop():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    stop = StopSignal()
    stop.defer(Accelerator())
    yield stop
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_deferred_signal_is_noted_and_the_process_continues(stop, number):
    assert not stop.requested(Accelerator())
    os.kill(os.getpid(), number)
    assert stop.requested(Accelerator())
    assert stop.requested(Accelerator()), "the flag stays set"
    assert stop.status == 128 + number, "as a shell's for a process ended by it"


def test_a_second_ctrl_c_ends_the_process_at_once(stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_after_sigterm_ends_the_process_at_once(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested(Accelerator())
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_release_restores_the_earlier_handlers():
    def mine(number, frame):
        raise AssertionError("never sent")

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, mine) for number in numbers]
    try:
        stop = StopSignal()
        stop.defer(Accelerator())
        assert mine not in [signal.getsignal(number) for number in numbers]
        os.kill(os.getpid(), signal.SIGTERM)
        stop.release()
        assert [signal.getsignal(number) for number in numbers] == [mine, mine]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_the_end_of_the_launcher_counts_as_a_signal(monkeypatch, stop):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    launched = StopSignal()
    assert not launched.requested(Accelerator())
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert launched.requested(Accelerator())
    assert not stop.requested(Accelerator()), "it was not launched: its parent may end"


@pytest.mark.parametrize(("others", "wanted"), [(0.0, False), (1.0, True)])
def test_a_signal_in_another_process_stops_this_one_too(stop, others, wanted):
    def reduce(flag: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return flag + others

    assert stop.status == 143
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)
    assert stop.requested(two) is False, "a signal is known one step later"
    assert stop.requested(two) is wanted
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested(two) is wanted
    assert stop.requested(two) is True


@pytest.mark.parametrize(
    ("processes", "launcher"), [(1, ["python"]), (2, ["accelerate", "launch"])]
)
def test_exit_after_checkpoint_says_how_to_resume(capsys, processes, launcher):
    accelerator = SimpleNamespace(num_processes=processes, end_training=list)
    with pytest.raises(SystemExit) as left:
        stop = SimpleNamespace(status=130)
        exit_after_checkpoint(stop, Path("runs/a b"), "train-autoencoder", accelerator)
    assert left.value.code == 130
    said, command = capsys.readouterr().out.strip().split("; to resume: ")
    assert said == "stopped after saving a checkpoint"
    assert shlex.split(command) == [
        *(*launcher, "-m", "hf_latent", "train-autoencoder"),
        *("--config", "runs/a b/config.yaml", "--resume_from_checkpoint", "latest"),
    ]
