"""The threads of a training's processes on a CPU."""

import logging
import os

import psutil
import torch

logger = logging.getLogger(__name__)


def usable_cores() -> int:
    """Return the number of physical cores that this process may use."""
    process, physical = psutil.Process(), psutil.cpu_count(logical=False)
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count()
    return min(x for x in (allowed, physical) if x)


def use_all_cores() -> None:
    """Share this machine's cores among its processes, if their launcher gave one thread to each.

    `accelerate launch` and torchrun set OMP_NUM_THREADS to 1 if the user chose no number of
    threads. The launcher's own environment and arguments show whether the user did.
    """
    launched = not {"ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ)
    if not launched or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    try:
        launcher = psutil.Process(os.getppid())
        words = " ".join(launcher.cmdline()).replace("-", "_")
        if "OMP_NUM_THREADS" in launcher.environ() or "__num_cpu_threads" in words:
            return
    except psutil.Error:  # the launcher has ended, or is another user's
        return
    threads = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads > 1:
        torch.set_num_threads(threads)
        logger.info(f"threads: {threads}; with OMP_NUM_THREADS=1 before the launcher, one")
