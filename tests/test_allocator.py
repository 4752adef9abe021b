"""The page faults of a training step, in processes of their own."""

import json
import os
import platform
import sys

import pytest

from hf_latent.allocator import keep_freed_memory
from tests import forked

CODE = """
import json, resource, torch
from statistics import median
from hf_latent.command import Settings, run_command
from hf_latent.models.presets import create_autoencoder

vae = create_autoencoder("tiny", 1, 32)
images = torch.randn(32, 1, 32, 32)

def faults():
    counts = []
    for step in range(14):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        vae(images).sample.square().mean().backward()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # After three steps the process has had all the memory that a step needs. The median: the system
    # takes idle pages back at times, and glibc's own thresholds move.
    return median(counts[3:])

counts = {"before": faults()}
run_command(Settings, lambda config: counts.update(in_command=faults()), [])
print(json.dumps(counts))
"""


def count_faults(**environment: str) -> dict[str, int]:
    """Page faults of an autoencoder's training step, before and in a command: medians."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    process = forked.run([sys.executable, "-c", CODE], known | environment)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@on_glibc
def test_a_training_step_gets_no_new_memory_in_a_command():
    counts = count_faults()
    assert counts["before"] > 1000
    assert counts["in_command"] < counts["before"] / 10


@on_glibc
def test_settings_of_the_environment_win():
    counts = count_faults(MALLOC_ARENA_MAX="2")
    assert counts["in_command"] > counts["before"] / 2


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    keep_freed_memory()
