"""Threads of a launched process, on a machine that has six cores for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_latent.training.run import threads

SIX_CORES = """
import psutil
psutil.cpu_count = lambda logical: 6
psutil.Process.cpu_affinity = lambda process: list(range(6))
"""
THREADS = f"""{SIX_CORES}
import torch
from hf_latent.training.run.threads import use_all_cores
use_all_cores()
print("threads", torch.get_num_threads())
"""
TRAINING = f"""{SIX_CORES}
import torch
from hf_latent.training.run.accelerator import create_accelerator
create_accelerator()
print("threads", torch.get_num_threads())
"""
# What `accelerate launch` does, without importing it.
LAUNCHER = """
import os, subprocess, sys
given = {"OMP_NUM_THREADS": "1", "ACCELERATE_DYNAMO_MODE": "default"}
subprocess.run([sys.executable, sys.argv[1]], env=os.environ | given, check=True)
"""


def count_threads(program: str, folder: Path, *launcher: str, **environment: str) -> list[str]:
    """What each process of a launched program prints of its threads."""
    script = folder / "program.py"
    script.write_text(program)
    known = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    known["PYTHONPATH"] = os.getcwd()
    words = [str(script) if word == "SCRIPT" else word for word in launcher]
    process = subprocess.run(
        words, env=known | environment, cwd=folder, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return [line for line in process.stdout.splitlines() if line.startswith("threads ")]


def test_a_training_by_accelerate_launch_uses_all_cores(tmp_path):
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    unconfigured = {"HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    words = (accelerate, "launch", "SCRIPT")
    assert count_threads(TRAINING, tmp_path, *words, **unconfigured) == ["threads 6"]


def test_processes_of_one_machine_share_its_cores(tmp_path):
    words = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "SCRIPT")
    assert count_threads(THREADS, tmp_path, *words) == ["threads 3"] * 2


@pytest.mark.parametrize(
    ("flags", "environment"),
    [([], {"OMP_NUM_THREADS": "1"}), (["--num-cpu-threads-per-process=1"], {})],
)
def test_a_number_of_threads_that_the_user_chose_is_kept(flags, environment, tmp_path):
    words = (sys.executable, "-c", LAUNCHER, "SCRIPT", *flags)
    assert count_threads(THREADS, tmp_path, *words, **environment) == ["threads 1"]


def test_without_a_launcher_nothing_is_changed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(threads, "usable_cores", lambda: 6)
    threads.use_all_cores()
    assert torch.get_num_threads() == 1
