"""Dry runs: what they estimate, beside what trainings hold, and that they leave nothing."""

import re
from dataclasses import replace

import pytest
import torch

from hf_latent.cli import main
from hf_latent.evaluation import costs
from hf_latent.evaluation.costs import Costs
from hf_latent.training import autoencoder
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.dry_run import estimate
from hf_latent.training.dry_run.estimate import (
    MB,
    DryRunEnd,
    choose_shape,
    describe,
    length_figures,
)
from hf_latent.training.equivariance import Transform

ADVERSARIAL = {
    "discriminator_weight": 0.5,
    "discriminator_num_layers": 2,
    "discriminator_base_channels": 8,
}
TRAININGS = {
    "autoencoder": (train_autoencoder, {}),
    "all losses": (
        train_autoencoder,
        {"gradient_accumulation_steps": 2, "equivariance_weight": 1.0, **ADVERSARIAL},
    ),
    "decoder": (
        train_autoencoder,
        {"pretrained_vae": "fashion-mnist-f4", "train_decoder_only": True},
    ),
    "denoiser": (train_denoiser, {"vae": "fashion-mnist-f4", "conditional": False}),
    "encoding denoiser": (
        train_denoiser,
        {"vae": "fashion-mnist-f4", "objective": "epsilon", "encode_every_step": True},
    ),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(estimate, "SECONDS", 1e-9)
    monkeypatch.setitem(costs.PRODUCT_SIZES, "cpu", 64)
    # The dearest transform in every step.
    monkeypatch.setattr(autoencoder, "choose_transform", lambda *place: Transform(1, 1.0))


@pytest.fixture
def config(request, autoencoder_config, denoiser_config):
    train, changes = TRAININGS[request.param]
    make = autoencoder_config if train is train_autoencoder else denoiser_config
    short = {"max_train_steps": 2, "train_batch_size": 32, "max_validation_samples": 2}
    return train, make(**short, **changes)


def run_dry(train, config) -> dict:
    with pytest.raises(DryRunEnd) as end:
        train(replace(config, dry_run=True))
    assert end.value.code == 0
    return end.value.figures


@pytest.mark.parametrize("config", TRAININGS, indirect=True)
def test_a_training_holds_the_memory_that_was_estimated(config):
    train, settings = config
    estimated = run_dry(train, settings)["memory_mb"]
    with Costs() as held:
        train(settings)
    assert estimated == pytest.approx(held.peak_bytes / MB, rel=0.2)


def test_nothing_is_left_and_a_person_reads_what_the_training_needs(tmp_path, capsys):
    flags = "--data fashion_mnist --max_train_samples 40 --train_batch_size 8 --dry_run"
    folder = tmp_path / "runs" / "vae"
    with pytest.raises(SystemExit) as end:
        main(["train-autoencoder", "--output_dir", str(folder), *flags.split()])
    assert end.value.code == 0 and not list(tmp_path.iterdir())
    lines = r"""
a dry run: nothing is trained, and nothing is written
images \(1, 32, 32\), latents \(4, 8, 8\); 40 training images
parameters: trained vae 0\.\d M; frozen none
memory, estimated: [\d.]+ GB = parameters [\d.]+ \+ gradients [\d.]+ \+ optimizer [\d.]+ \+ \
average [\d.]+ \+ activations [\d.]+; [\d.,]+ GB are available on .+
a checkpoint: [\d.]+ GB on the disk
a step of 8 images in 1 process: [\d.e-]+ s, measured with 8 of 32x32 pixels
the run: 10,000 steps, 2,000.0 epochs, [\d,]+ (minutes|hours|days) without validation and \
checkpoints
""".replace("\\\n", "")
    assert re.search(lines.strip(), capsys.readouterr().out)


def test_it_makes_the_checks_of_a_training(tmp_path, autoencoder_config, denoiser_config, capsys):
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "notes.txt").touch()
    with pytest.raises(ValueError, match="has files in it"):
        train_autoencoder(autoencoder_config(dry_run=True))
    with pytest.raises(ValueError, match="no autoencoder found"):
        train_denoiser(denoiser_config(dry_run=True, vae="runs/nothing"))


def test_without_memory_for_one_image_the_time_stays_unknown(autoencoder_config, monkeypatch):
    monkeypatch.setattr(estimate, "measure_free_mb", lambda device: 0.0)
    figures = run_dry(train_autoencoder, autoencoder_config(max_train_minutes=5))
    assert not {"step_seconds", "steps", "hours"} & figures.keys()
    text = "\n".join(describe(figures))
    assert "more than is available: lower --train_batch_size" in text
    assert "not measured, because one image does not fit" in text and "the run" not in text


def test_a_step_is_that_of_all_parts_scaled_from_the_measured_batch(
    autoencoder_config, monkeypatch
):
    config = autoencoder_config(gradient_accumulation_steps=3)
    calls = []

    class Loop:
        step, add_gradients, update = "step", "gradients", "update"

    def seconds(call, shortest):
        calls.append(call)
        return {"gradients": 2.0, "update": 0.5}.get(call, 0.0)

    monkeypatch.setattr(estimate, "seconds_per_call", seconds)
    monkeypatch.setattr(Loop, "step", lambda self: calls.append("step"))
    found = estimate.measure_step(config, Loop(), (8, 3, 64, 64), (2, 3, 32, 32), None)
    assert found == 3 * 2.0 * 16 + 0.5
    assert calls == ["step", "gradients", "update"]


def test_a_line_says_if_the_measured_step_was_another(autoencoder_config):
    figures = run_dry(train_autoencoder, autoencoder_config())
    assert "measured with 8 of 32x32 pixels\n" in "\n".join(describe(figures))
    figures |= {"measured_shape": [1, 1, 32, 32], "processes": 4, "images_per_step": 32}
    text = "\n".join(describe(figures))
    assert "a step of 32 images in 4 processes" in text and "memory of each process" in text
    assert "measured with 1 of 32x32 pixels, and scaled\n" in text


def test_fewer_images_are_measured_and_then_smaller_ones():
    shape = (32, 3, 512, 512)
    assert choose_shape(shape, 40.0) == shape
    assert choose_shape(shape, 5.9) == (5, 3, 512, 512)
    assert choose_shape(shape, 0.5) == (2, 3, 256, 256)
    assert choose_shape(shape, 0.01) == (1, 3, 128, 128)
    assert choose_shape((32, 3, 192, 192), 0.5) == (1, 3, 192, 192)


def test_the_length_of_a_run(autoencoder_config):
    figures = {"images_per_step": 64, "train_images": 1000, "step_seconds": 0.5}
    by_steps = autoencoder_config(max_train_steps=100)
    assert length_figures(by_steps, figures) == {
        "steps": 100,
        "epochs": 6.4,
        "hours": 50 / 3600,
    }
    by_minutes = autoencoder_config(max_train_minutes=5)
    assert length_figures(by_minutes, figures)["steps"] == 600
    del figures["step_seconds"]
    assert length_figures(by_steps, figures) == {"steps": 100, "epochs": 6.4}


def test_several_processes_keep_gradients_twice(autoencoder_config):
    model = torch.nn.Linear(512, 512, bias=False)
    state = estimate.TrainingState({"vae": model}, {}, {"vae": {}}, {})
    one, two = (estimate.memory_figures(state, state.models, 3 * MB, n) for n in (1, 2))
    assert one["gradients_mb"] == 1 and one["activations_mb"] == 2
    assert two == one | {"gradients_mb": 2, "memory_mb": one["memory_mb"] + 1}
