import re

import pytest
import torch

from hf_latent.cli import main
from hf_latent.evaluation import costs
from hf_latent.experiments import doctor
from hf_latent.experiments.doctor import choose_batch, describe_accounts, measure_batches

CPU = torch.device("cpu")
LINES = r"""
hf-latent [\d.]+\S*, Python 3\.\S+, torch \S+
diffusers \S+, transformers \S+, accelerate \S+, datasets \S+, huggingface_hub \S+
device: (cpu|cuda|mps), \S.*
(GPU \d: .*
)*cores: \d+; torch uses 1
memory: [\d.,]+ GB, [\d.,]+ GB free
disk: [\d.,]+ GB here, [\d.,]+ GB for downloads
matrix product in float32: [\d,]+ GFLOP/s
matrix product in bfloat16: [\d,]+ (GFLOP/s|times slower)
Hub: .*
accelerate: .*
bf16 in training: [\d.e-]+ times as fast as float32, which (pays|does not pay)
images a second of the autoencoder of the 32-pixel recipes, by batch: [\d,]+ at 2, [\d,]+ at 4
images a second of the denoiser of the 32-pixel recipes, by batch: [\d,]+ at 2, [\d,]+ at 4
recommended; larger images need smaller batches:
  hf-latent train-autoencoder --train_batch_size (2|4) --mixed_precision (no|bf16)
  hf-latent train-denoiser --train_batch_size (2|4) --mixed_precision (no|bf16)
"""


def test_doctor_prints_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "SMALLEST_BATCH", 2)
    monkeypatch.setattr(doctor, "LARGEST_BATCH", {"cpu": 4})
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    monkeypatch.setattr(doctor, "fastest_device", lambda: CPU)
    monkeypatch.setitem(costs.PRODUCT_SIZES, "cpu", 64)
    main(["doctor"])
    out = capsys.readouterr().out
    assert re.fullmatch(LINES.lstrip(), out), out


@pytest.mark.parametrize(("speed", "precision"), [(1.3, "bf16"), (1.0, "no")])
def test_what_pays_is_recommended(monkeypatch, speed, precision):
    monkeypatch.setattr(doctor, "bf16_speed", lambda *calls: speed)
    measured = []

    def measure(name, precision, device):
        measured.append(precision)
        return {32: 100.0, 64: 120.0, 128: 125.0}

    monkeypatch.setattr(doctor, "measure_batches", measure)
    monkeypatch.setattr(doctor, "fastest_device", lambda: CPU)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    last = list(doctor.recommend())[-1]
    assert last == (
        "  accelerate launch --num_processes 2 -m hf_latent train-denoiser "
        f"--train_batch_size 64 --mixed_precision {precision}"
    )
    assert measured == [precision] * 2


def test_the_smallest_batch_that_is_nearly_fastest():
    assert choose_batch({32: 100, 64: 115, 128: 125}) == 64
    assert choose_batch({32: 100, 64: 90, 128: 80}) == 32


def test_a_batch_that_the_memory_cannot_hold_is_the_last(monkeypatch):
    def make(name, batch, precision, device):
        if batch > 64:
            raise torch.OutOfMemoryError
        return type("Loop", (), {"step": staticmethod(lambda: None)})

    monkeypatch.setattr(doctor, "_loop", make)
    monkeypatch.setattr(doctor, "SECONDS", 1e-6)
    assert list(measure_batches("denoiser", "no", CPU)) == [32, 64]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not configured, which one process does not need"),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: bf16\n",
            "distributed_type MULTI_GPU, num_processes 2, mixed_precision bf16, use_cpu False",
        ),
        ("colour: red\n", "cannot be used: run accelerate config ("),
    ],
)
def test_the_configuration_of_accelerate(tmp_path, monkeypatch, text, said):
    path = tmp_path / "default_config.yaml"
    if text:
        path.write_text(text)
    monkeypatch.setattr(doctor, "default_config_file", str(path))
    hub, line = describe_accounts()
    assert hub.startswith("Hub: ") and "\n" not in line
    assert line.startswith("accelerate: ") and said in line
