"""The machine that a figure was measured on, and names without its paths."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

from hf_latent.data.images.sources import BUILT_IN


def shown_name(given: str) -> str:
    """Return the name that a report gives to a path, a Hub id or built-in images.

    Reports name no paths: of a path that exists or is absolute the last part remains, with ./
    before it if built-in images have the same name.
    """
    path = Path(given).expanduser()
    if given in BUILT_IN or not (path.is_absolute() or path.exists()):
        return given
    name = path.resolve().name
    return f"./{name}" if name in BUILT_IN else name


def device_name() -> str:
    """Return the name of the accelerator, or of the processor where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processors = Path("/proc/cpuinfo")  # platform.processor() is empty on many Linux systems
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_figures() -> dict[str, Any]:
    """Return this process's peak resident memory in MB so far, the machine and versions."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KB
    return {
        "peak_memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "device_name": device_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "diffusers_version": diffusers.__version__,
    }


def anonymous_memory_mb() -> float | None:
    """Return this process's memory that no file backs, in MB; None on systems without /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
