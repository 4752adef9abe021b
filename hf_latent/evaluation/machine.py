"""What a figure was measured with."""

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
    """Return how a report calls a folder, file or Hub id: no path of this machine.

    Args:
        given: by the user.

    Returns:
        The name of a folder or file, with ./ before it where built-in images have that name too,
        so that nobody takes these for those; else what was given.
    """
    path = Path(given).expanduser()
    if given in BUILT_IN or not path.exists():
        return given
    name = path.resolve().name
    return f"./{name}" if name in BUILT_IN else name


def machine_figures() -> dict[str, Any]:
    """Describe this process and its machine, for a report.

    Returns:
        Peak resident memory in MB (of this process so far), cores, threads and versions.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KB
    return {
        "peak_memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "diffusers_version": diffusers.__version__,
    }


def anonymous_memory_mb() -> float | None:
    """Return the memory of this process that no file stands behind; None where Linux is not."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
