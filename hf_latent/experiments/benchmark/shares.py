"""Shares of a training step's time."""

import cProfile
from collections import defaultdict
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch.profiler import profile, supported_activities

from hf_latent.training.run.clock import TrainingSummary

# The parts of a step, and the functions that the loops of both trainings call for each.
PARTS: dict[str, set[str]] = {
    "data": {"<built-in method builtins.next>", "LatentBatch.to", "to_device"},
    "draws": {"ShardedDraws.normal", "draw_batch"},
    "forward": {
        *("Module._wrapped_call_impl", "denoising_loss"),
        *("reconstruction_loss", "kl_per_latent_value"),
    },
    "backward": {"Accelerator.backward"},
    "optimizer": {
        *("TrainingState.clip_gradients", "TrainingState.step_optimizers"),
        "AcceleratedOptimizer.zero_grad",
    },
    "average": {"WeightAverage.step"},
    "guard": {"NonFiniteGuard.check"},
    "log": {"TrainingClock.log_loss", "TrainingClock.log_gradient_norm", "TrainingClock.steps"},
}


# The functions that call the parts in each step.
LOOPS = {"train_autoencoder", "train_on_task", "LatentTask.draw"}


def time_parts(train: Callable[[], TrainingSummary]) -> dict[str, float]:
    """Return the share of each part in the time of a training's steps, and of the rest as `other`.

    It is the time of the host, which a GPU makes wait in whatever reads from it. Python's profiler
    adds time to each call, most of all to `forward`.

    Args:
        train: runs the training.
    """
    profiler = cProfile.Profile()
    summary = profiler.runcall(train)
    seconds: dict[str, float] = defaultdict(float)
    for caller in profiler.getstats():
        if _name(caller.code) in LOOPS:
            for called in caller.calls or ():
                seconds[_name(called.code)] += called.totaltime
    shares = {
        part: sum(seconds[name] for name in names) / summary.seconds
        for part, names in PARTS.items()
    }
    return shares | {"other": 1 - sum(shares.values())}


def _name(code: CodeType | str) -> str:
    return code if isinstance(code, str) else code.co_qualname


def time_operations(call: Callable[[], Any], count: int = 8) -> dict[str, float]:
    """Return the operations of torch that take the most time of a call, with their shares.

    On a GPU it is the time of their kernels.

    Args:
        call: does something.
        count: number of operations to return.
    """
    with profile(activities=supported_activities()) as profiler:
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
    kind = "device" if torch.accelerator.is_available() else "cpu"
    times = {
        x.key.removeprefix("aten::"): getattr(x, f"self_{kind}_time_total")
        for x in profiler.key_averages()
        if x.device_type == torch.autograd.DeviceType.CPU  # kernels count with their operation
    }
    total = sum(times.values())
    most = sorted(times, key=times.__getitem__, reverse=True)[:count]
    return {name: times[name] / total for name in most}
