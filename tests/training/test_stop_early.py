"""Signals before the first step, to processes that encode or wait for each other."""

import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from hf_latent.training.run.stop import BEFORE_TRAINING
from tests import forked
from tests.training.encoding import as_flags, encode_settings, save_autoencoder

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[2] / "train_scripts"
# Write slowly, so that a signal arrives between two files.
SLOWLY = """
import runpy, time
from hf_latent.training.latents import encode as latents
write_shard = latents.write_shard
def write_slowly(*arguments):
    time.sleep(0.3)
    return write_shard(*arguments)
latents.write_shard = write_slowly
runpy.run_module("tests.small", run_name="__main__", alter_sys=True)
"""
WAITING = """
import time
from accelerate import Accelerator
from hf_latent.training.run.stop import StopSignal
stop, accelerator = StopSignal("the line"), Accelerator()
print("ready", flush=True)
if accelerator.is_main_process:
    time.sleep(60)
accelerator.wait_for_everyone()
print("never")
"""


ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def start(*arguments: str) -> forked.Process:
    return forked.start([sys.executable, *arguments], env=ENVIRONMENT)


def stop_at_the_first_file(process: forked.Process, cache: Path, number: int) -> tuple[str, dict]:
    """Send a signal once a file is encoded; return the last line and the files' times.

    The process must end quickly and without a traceback.
    """
    deadline = time.monotonic() + 120
    while not list(cache.glob("train-*.entry.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it does not encode"
        time.sleep(0.002)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr[-2000:]
    assert "Traceback" not in stderr
    entries = cache.glob("train-*.entry.json")  # a file counts once it has one
    files = [path.with_name(path.name.replace(".entry.json", ".safetensors")) for path in entries]
    found = {path: path.stat().st_mtime_ns for path in files}
    assert found and not list(cache.glob("validation-*")), "it was not stopped in between"
    return stdout.splitlines()[-1], found


def test_a_denoiser_stopped_while_encoding_can_be_resumed(denoiser_config, tmp_path):
    save_autoencoder(tmp_path / "autoencoder" / "model")
    config = denoiser_config(max_train_steps=1, dataloader_num_workers=1, validation_steps=9)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(asdict(config)))
    script = (str(SCRIPTS / "train_unet.py"), "--config", str(recipe))
    run = Path(config.output_dir)
    process = start("-c", SLOWLY, *script)
    line, kept = stop_at_the_first_file(process, run / "latents", signal.SIGTERM)
    assert line == BEFORE_TRAINING
    assert not list(run.glob("checkpoint-*"))
    process = start("-m", "tests.small", *script, "--resume_from_checkpoint", "latest")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr[-2000:]
    assert (run / "model").is_dir()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "encoded again"
    assert not list(run.rglob(".*")), "something half-written is left"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_encoding_can_be_resumed(tmp_path, number):
    config = encode_settings(save_autoencoder(tmp_path / "vae"), tmp_path / "cache")
    config = replace(config, dataloader_num_workers=1)
    script = (str(SCRIPTS / "encode_latents.py"), *as_flags(config))
    line, kept = stop_at_the_first_file(start("-c", SLOWLY, *script), tmp_path / "cache", number)
    assert line == "stopped: run the same command to continue; finished files are kept"
    process = start("-m", "tests.small", *script)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "encoded again"
    assert not list((tmp_path / "cache").rglob(".*")), "something half-written is left"


@pytest.mark.parametrize("both", [True, False])
def test_a_waiting_process_is_stopped_too(both):
    first, second = forked.start_ranks([sys.executable, "-c", WAITING], env=ENVIRONMENT)
    try:
        for process in (first, second):
            assert process.stdout.readline() == "ready\n", process.communicate()
        time.sleep(0.5)
        for process in (first, second) if both else (second,):
            process.terminate()
        for process in (second, first) if both else (second,):
            stdout, stderr = process.communicate(timeout=60)
            # A failure, so that the launcher ends the others.
            status = 128 + signal.SIGTERM if process is first else -signal.SIGTERM
            assert process.returncode == status, stderr[-2000:]
            assert "Traceback" not in stderr
            assert stdout == ("the line\n" if process is first else "")
    finally:
        first.kill()
        second.kill()


def test_a_process_is_stopped_even_if_its_output_is_closed():
    """Ctrl-C ends both a training and the program that reads its output through a pipe."""
    process = start(
        "-c",
        "import time; from hf_latent.training.run.stop import StopSignal\n"
        "StopSignal('the line'); print('ready', flush=True)\nwhile True: time.sleep(0.1)",
    )
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
