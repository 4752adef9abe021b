"""`hf-latent doctor`: what this machine has, what it is fast at, and the settings to train with."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from huggingface_hub import HfApi, constants, get_token

from hf_latent import __version__
from hf_latent.command import Settings
from hf_latent.data.device import fastest_device
from hf_latent.errors import UserError
from hf_latent.evaluation.costs import product_rate
from hf_latent.evaluation.machine import device_name, machine_figures
from hf_latent.evaluation.precision import TOO_SLOW, WORTH, bf16_speed, small_product_bf16_speed
from hf_latent.evaluation.timing import seconds_per_call
from hf_latent.experiments.benchmark.loop import TRAININGS, bare_loop
from hf_latent.hub.remote import retry
from hf_latent.training.dry_run.bare import BareLoop
from hf_latent.training.run.accelerator import default_precision
from hf_latent.training.run.threads import usable_cores

LIBRARIES = ("diffusers", "transformers", "accelerate", "datasets", "huggingface_hub")
# What the bare loops of `bench loop` need to know of the images.
IMAGES: Any = SimpleNamespace(image_shape=(1, 32, 32), id2label=range(10))
SMALLEST_BATCH = 32
LARGEST_BATCH = {"cpu": 128, "cuda": 1024}
SECONDS = 0.5  # of a measurement
NEARLY_FASTEST = 0.9


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Settings):
    """Print what this machine has and what it is fast at, and recommend settings of a training.

    It takes less than a minute on a CPU. A question about a problem should contain its output.
    """


def doctor(config: DoctorConfig) -> None:
    """Print the lines."""
    for lines in (describe_versions(), describe_machine(), describe_accounts(), recommend()):
        for line in lines:
            print(line, flush=True)


def describe_versions() -> Iterator[str]:
    """Yield the versions of what matters."""
    machine = machine_figures()
    python, torch_version = machine["python_version"], machine["torch_version"]
    yield f"hf-latent {__version__}, Python {python}, torch {torch_version}"
    yield ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def describe_machine() -> Iterator[str]:
    """Yield processors, GPUs, memory, disk, and the rates of matrix products."""
    device, memory = fastest_device(), psutil.virtual_memory()
    yield f"device: {device.type}, {device_name()}"
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"GPU {index}: {name}, {_gb(total)} of memory, {_gb(free)} free"
    yield f"cores: {usable_cores()}; torch uses {torch.get_num_threads()}"
    yield f"memory: {_gb(memory.total)}, {_gb(memory.available)} free"
    cache = Path(constants.HF_HOME)
    place = next(x for x in (cache, *cache.parents) if x.exists())
    disks = {"here": Path(), "for downloads": place}
    yield "disk: " + ", ".join(f"{_gb(shutil.disk_usage(x).free)} {y}" for y, x in disks.items())
    rate = product_rate(torch.float32, device) / 1e9
    yield f"matrix product in float32: {rate:,.0f} GFLOP/s"
    if device.type == "cpu" and (speed := small_product_bf16_speed()) < TOO_SLOW:
        yield f"matrix product in bfloat16: {1 / speed:,.0f} times slower"
    else:
        rate = product_rate(torch.bfloat16, device) / 1e9
        yield f"matrix product in bfloat16: {rate:,.0f} GFLOP/s"


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f} GB"


def describe_accounts() -> Iterator[str]:
    """Yield whose token the Hub gets, and how Accelerate is configured."""
    yield f"Hub: {_describe_login()}"
    if not Path(default_config_file).exists():
        yield "accelerate: not configured, which one process does not need"
        return
    try:
        config = load_config_from_file(default_config_file).to_dict()
    # The file may have been written by hand, or by another version.
    except Exception as error:
        reason = " ".join(str(error).split())
        yield f"accelerate: {default_config_file} cannot be used: run accelerate config ({reason})"
    else:
        shown = ("distributed_type", "num_processes", "mixed_precision", "use_cpu")
        yield "accelerate: " + ", ".join(f"{x} {config[x]}" for x in shown if x in config)


def _describe_login() -> str:
    if get_token() is None:
        return "no token; to push or to read private models, run hf auth login"
    try:
        return f"logged in as {retry(lambda: HfApi(token=True).whoami()['name'], 'whoami', ())}"
    except UserError as error:
        return str(error)


def recommend() -> Iterator[str]:
    """Yield images a second of both trainings by batch, and commands with the best settings."""
    device = fastest_device()
    precision = default_precision() or "no"
    if device.type == "cpu":
        in_float32, in_bf16 = (_loop("denoiser", SMALLEST_BATCH, x, device) for x in ("no", "bf16"))
        speed = bf16_speed(in_float32.step, in_bf16.step)
        precision, pays = ("bf16", "pays") if speed >= WORTH else ("no", "does not pay")
        yield f"bf16 in training: {speed:.2g} times as fast as float32, which {pays}"
    commands = []
    for name in TRAININGS:
        rates = measure_batches(name, precision, device)
        shown = ", ".join(f"{rate:,.0f} at {batch}" for batch, rate in rates.items())
        yield f"images a second of the {name} of the 32-pixel recipes, by batch: {shown}"
        flags = f"--train_batch_size {choose_batch(rates)} --mixed_precision {precision}"
        commands.append(f"train-{name} {flags}")
    processes, program = torch.cuda.device_count(), "hf-latent"
    if processes > 1:
        program = f"accelerate launch --num_processes {processes} -m hf_latent"
    yield "recommended; larger images need smaller batches:"
    for command in commands:
        yield f"  {program} {command}"


def _loop(name: str, batch: int, precision: str, device: torch.device) -> BareLoop:
    """Return a training's bare loop at the settings of its 32-pixel recipe."""
    training = TRAININGS[name]
    settings: dict[str, Any] = {"train_batch_size": batch, "mixed_precision": precision}
    config = training.config(output_dir="unused", **training.settings, **settings)
    return bare_loop(name, config, IMAGES, device)


def measure_batches(name: str, precision: str, device: torch.device) -> dict[int, float]:
    """Return the images a second of a training by batch, each twice as large as the last.

    Args:
        name: a key of `TRAININGS`.
        precision: no or bf16.
        device: to train on. A batch that its memory cannot hold is the last.
    """
    rates, batch = {}, SMALLEST_BATCH
    while batch <= LARGEST_BATCH.get(device.type, 128):
        try:
            step = _loop(name, batch, precision, device).step
            step()  # the first one prepares kernels
            rates[batch] = batch / seconds_per_call(step, SECONDS)
        except torch.OutOfMemoryError:
            break
        batch *= 2
    return rates


def choose_batch(rates: dict[int, float]) -> int:
    """Return the smallest batch that is nearly as fast as the fastest."""
    fastest = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= NEARLY_FASTEST * fastest)
