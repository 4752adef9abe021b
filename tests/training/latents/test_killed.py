"""Encoding gives the same bytes if it is killed, runs out of disk or is shared by processes."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from hf_latent.training.latents.encode import encode_latents
from tests import forked
from tests.attacks.kills import KILLS
from tests.data.latent_caches import all_bytes
from tests.training.encoding import as_flags, encode_settings, save_autoencoder

SCRIPT = Path(__file__).parents[3] / "train_scripts" / "encode_latents.py"
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def small_trainings():
    """Keep the normal size: started processes must encode the same images as this one."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted cache of 60 files: its configuration and its bytes."""
    folder = tmp_path_factory.mktemp("whole")
    vae = save_autoencoder(folder / "autoencoder")
    config = encode_settings(
        vae, folder / "cache", max_train_samples=220, shard_rows=4, max_validation_samples=20
    )
    encode_latents(config)
    assert len(all_bytes(folder / "cache")) == 55 + 5 + 1
    return config, all_bytes(folder / "cache")


def launch(config) -> forked.Process:
    return forked.start([sys.executable, SCRIPT, *as_flags(config)], env=ENVIRONMENT)


def launch_two(config) -> list[forked.Process]:
    return forked.start_ranks([sys.executable, SCRIPT, *as_flags(config)], env=ENVIRONMENT)


def ends_well(processes: list[forked.Process]) -> list[str]:
    """Wait for processes to end with status 0; return what each printed."""
    printed = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=90)
        assert process.returncode == 0, stderr[-2000:]
        printed.append(stdout)
    return printed


def wait_for_files(folder: Path, count: int, alive) -> None:
    """Wait until the folder has `count` more files, including half-written ones."""
    known: set[str] = set(os.listdir(folder)) if folder.exists() else set()
    seen, deadline = set(known), time.monotonic() + 60
    while len(seen - known) < count and alive():
        assert time.monotonic() < deadline, "it does not encode"
        if folder.exists():
            seen |= set(os.listdir(folder))
    time.sleep(random.uniform(0, 0.004))


def test_killed_at_random_moments_the_cache_is_that_of_an_uninterrupted_run(whole, tmp_path):
    config, content = whole
    config = replace(config, output_dir=str(tmp_path / "cache"))
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the random moments: {seed}")  # pytest shows it if the test fails
    draw, killed = random.Random(seed), 0
    for _ in range(KILLS):
        process = get_context("fork").Process(target=encode_latents, args=(config,))
        process.start()
        wait_for_files(tmp_path / "cache", draw.randint(1, 12), process.is_alive)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        names = os.listdir(tmp_path / "cache")
        print(f"{len(names)} files, {[x for x in names if x.startswith('.')]}")
    assert killed == KILLS
    assert len(names) < len(content)
    process = get_context("fork").Process(target=encode_latents, args=(config,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert all_bytes(tmp_path / "cache") == content


def test_two_processes_make_the_files_of_one_killed_in_between_or_not(whole, tmp_path):
    whole_config, content = whole
    files = {name for name in content if name.endswith(".safetensors")}
    for attempt in range(5):  # on a loaded machine all files may be there before the kill
        folder = tmp_path / f"cache-{attempt}"
        config = replace(whole_config, output_dir=str(folder))
        processes = launch_two(config)
        wait_for_files(folder, 9, lambda p=processes[0]: p.poll() is None)
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
        if 0 < len(files & set(os.listdir(folder))) < len(files):
            break
    else:
        pytest.fail("it was never killed in between")
    ends_well(launch_two(config))
    assert all_bytes(folder) == content


def test_two_processes_make_the_files_of_one(whole, tmp_path):
    config, content = whole
    config = replace(config, output_dir=str(tmp_path / "cache"))
    stdouts = ends_well(launch_two(config))
    assert "in 60 files, 240 encoded now" in stdouts[0]  # each image by one of them
    assert all_bytes(tmp_path / "cache") == content


def assert_full_disk_is_one_line(process: forked.Process, folder: Path, content) -> None:
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 2, stderr[-2000:]
    line = stderr.splitlines(True)[-1]
    assert line.startswith("error: ")
    line = line.removeprefix("error: ")
    assert line.startswith(f"{folder}/train-0000")
    assert ".safetensors cannot be written (" in line
    assert line.count("\n") == 1 and "Traceback" not in stderr
    # All files are complete, and no half-written one is left.
    found = {k: v for k, v in all_bytes(folder).items() if not k.endswith(".json")}
    assert found.items() <= content.items()
    assert len(found) < len(content)


def test_a_file_that_may_not_grow_is_named_and_the_rest_stays(whole, tmp_path):
    config, content = whole
    folder = tmp_path / "cache"
    config = replace(config, output_dir=str(folder))
    largest = max(len(x) for name, x in content.items() if name.startswith("train"))

    code = LIMITED.format(limit=largest - 100)
    process = forked.start([sys.executable, "-c", code, SCRIPT, *as_flags(config)], env=ENVIRONMENT)
    assert_full_disk_is_one_line(process, folder, content)
    encode_latents(config)
    assert all_bytes(folder) == content


def test_a_full_disk_is_one_line_and_what_was_written_stays(whole, tmp_path):
    config, content = whole
    folder = tmp_path / "disk" / "cache"
    folder.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder.parent)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here; the size limit above is tested")
    try:
        config = replace(config, output_dir=str(folder))
        assert_full_disk_is_one_line(launch(config), folder, content)
        found = all_bytes(folder)
        assert len(found) > 3, "several fit"
        remount = ["mount", "-o", "remount,size=64m", str(folder.parent)]
        subprocess.run(remount, check=True)
        encode_latents(config)
        assert all_bytes(folder) == content
    finally:
        subprocess.run(["umount", str(folder.parent)], check=False)
