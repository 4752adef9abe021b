import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState

from hf_latent.errors import SharedError, UserError
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.run import accelerator as run_module
from hf_latent.training.run.accelerator import raise_everywhere, start_accelerator
from tests import forked


def test_processes_that_accelerate_does_not_see_are_refused(autoencoder_config, monkeypatch):
    assert start_accelerator(autoencoder_config()).num_processes == int(
        os.environ.get("WORLD_SIZE", "1")
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched and Accelerate sees 1"):
        start_accelerator(autoencoder_config())


# Run in another process, since a process group, here of one process, cannot be removed.
PRINT_TIMEOUT = """
import sys
from pathlib import Path
import torch
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.run.accelerator import start_accelerator
from tests.training.encoding import encode_settings, save_autoencoder

command, folder = sys.argv[1], Path(sys.argv[2])
if command == "train":
    start_accelerator(AutoencoderConfig(output_dir=str(folder)))
else:
    encode_latents(encode_settings(save_autoencoder(folder / "vae"), folder / "latents"))
group = torch.distributed.distributed_c10d._get_default_group()
print(int(group._get_backend(torch.device("cpu")).options._timeout.total_seconds()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "encode"])
def test_processes_wait_for_each_other_for_24_hours(tmp_path, command):
    launched = {
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    process = forked.run(
        [sys.executable, "-c", PRINT_TIMEOUT, command, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env=os.environ | launched,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert int(process.stdout.splitlines()[-1]) == 24 * 3600


def test_gradient_accumulation_must_equal_the_launchers(autoencoder_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match="set to accumulate 4 times, this run 1: ") as error:
        start_accelerator(autoencoder_config())
    assert "pass --gradient_accumulation_steps 4" in str(error.value)
    assert "\n" not in str(error.value)
    start_accelerator(autoencoder_config(gradient_accumulation_steps=4))


@pytest.fixture
def another_precision():
    """Let Accelerate change the precision, which it keeps for the whole process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("asked_by", ["the flag", "accelerate's settings"])
def test_fp16_on_a_cpu_is_refused(autoencoder_config, monkeypatch, another_precision, asked_by):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    config = autoencoder_config(mixed_precision="fp16")
    if asked_by == "accelerate's settings":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        config = autoencoder_config()
    with pytest.raises(UserError, match=r"^fp16 needs a GPU, and this training is on") as error:
        start_accelerator(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "gpu", "has_bf16", "expected"),
    [
        ({}, True, True, "bf16"),
        ({}, True, False, None),
        ({}, False, True, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True, True, None),
        ({"ACCELERATE_USE_CPU": "1"}, True, True, None),
        ({"ACCELERATE_TORCH_DEVICE": "cpu"}, True, True, None),
    ],
)
def test_the_default_precision_is_bf16_on_a_gpu_that_has_it(
    monkeypatch, environment, gpu, has_bf16, expected
):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert run_module.default_precision() == expected


def test_a_precision_that_nobody_asked_for_in_this_run_is_said(
    autoencoder_config, monkeypatch, another_precision, capsys
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    start_accelerator(autoencoder_config())
    said = "mixed precision: bf16; --mixed_precision no trains in float32\n"
    assert capsys.readouterr().out == said
    start_accelerator(autoencoder_config(mixed_precision="bf16"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_launchers_that_split_weights_are_refused(autoencoder_config, monkeypatch, kind):
    start_accelerator(autoencoder_config())
    kind = getattr(DistributedType, kind)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(UserError, match=f"^{kind.value} is not supported here") as error:
        start_accelerator(autoencoder_config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("report_to", "missing"), [("wandb", "wandb"), ("tensorboard,wandb", "wandb")]
)
def test_a_missing_tracker_is_named(autoencoder_config, tmp_path, monkeypatch, report_to, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        run_module, "find_spec", lambda name: None if name == missing else find("json")
    )
    with pytest.raises(UserError, match=f"^--report_to {missing} is not installed: pip install"):
        train_autoencoder(autoencoder_config(report_to=report_to))
    assert not (tmp_path / "autoencoder").exists()


def test_an_unknown_tracker_is_refused(autoencoder_config):
    with pytest.raises(UserError, match="--report_to paper is not one of tensorboard, trackio"):
        autoencoder_config(report_to="tensorboard, paper")
    assert autoencoder_config(report_to=" tensorboard, trackio").trackers() == [
        "tensorboard",
        "trackio",
    ]
    assert autoencoder_config().trackers() == []


def test_tensorboard_gets_the_scalars_of_the_log(autoencoder_config, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = autoencoder_config(
        report_to="tensorboard",
        discriminator_weight=0.5,
        discriminator_base_channels=8,
        discriminator_num_layers=1,
    )
    train_autoencoder(config)
    logs = tmp_path / "autoencoder" / "logs"
    assert [path.name for path in logs.iterdir() if path.is_dir()] == ["hf_latent"]
    written = events.EventAccumulator(str(logs / "hf_latent")).Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in (logs / "losses.jsonl").open():
        values = json.loads(line)
        step = values.pop("step")
        group = "validation" if "validation_loss" in values else "train"
        for name, value in values.items():
            name = name.replace(f"{group}_loss", "loss")
            expected.setdefault(f"{group}/{name}", []).append((step, value))
    assert {"train/loss", "validation/loss", "validation/psnr_db"} <= expected.keys()
    assert expected.keys() == set(written.Tags()["scalars"])
    for name, values in expected.items():
        found = [(event.step, event.value) for event in written.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in values]
        assert [value for _, value in found] == pytest.approx([value for _, value in values])


def test_an_error_of_one_process_is_raised_in_all(monkeypatch):
    with raise_everywhere(Accelerator()):
        pass
    for kind in (UserError, OSError):
        with pytest.raises(SharedError, match=r"^mine$"), raise_everywhere(Accelerator()):
            raise kind("mine")
    monkeypatch.setattr(run_module, "gather_object", lambda mine: [*mine, "another's"])
    with pytest.raises(SharedError, match=r"^another's$"), raise_everywhere(Accelerator()):
        pass
    with pytest.raises(UserError, match=r"^mine$"), raise_everywhere(Accelerator()):
        raise UserError("mine")
