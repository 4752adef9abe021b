import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_latent.errors import UserError
from hf_latent.training.averages.power_function import PowerFunctionEMA, gamma_from_sigma_rel
from hf_latent.training.averages.snapshots import list_snapshots
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.latents.encode import encode_latents
from tests.training.conftest import short_denoiser
from tests.training.encoding import IMAGES, encode_settings, save_autoencoder
from tests.training.test_resume import StopAfter, assert_same_weights

# Karras et al. 2024, section 3.1.
GAMMAS = {0.05: 16.97, 0.10: 6.94}
SNAPSHOTS = {
    "ema_snapshot_steps": 2,
    "max_train_steps": 5,
    "checkpointing_steps": 3,
    "validation_steps": 100,
    "max_validation_samples": 4,
}
SETTINGS = SNAPSHOTS | IMAGES | {"max_train_samples": None}


@pytest.mark.parametrize(("sigma_rel", "gamma"), GAMMAS.items())
def test_the_exponents_equal_the_papers(sigma_rel, gamma):
    assert gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.07, 0.1, 0.2, 0.27])
def test_the_length_is_the_deviation_of_the_profile(sigma_rel):
    gamma = gamma_from_sigma_rel(sigma_rel)
    share = np.linspace(0, 1, 1_000_001)
    profile = (gamma + 1) * share**gamma
    mean = np.trapezoid(profile * share, share)
    variance = np.trapezoid(profile * (share - mean) ** 2, share)
    assert variance**0.5 == pytest.approx(sigma_rel, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [1e-200, 1e-9])
def test_the_shortest_lengths_do_not_overflow(sigma_rel):
    assert gamma_from_sigma_rel(sigma_rel) == pytest.approx(1 / sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.28, 0.5, float("nan")])
def test_impossible_lengths_are_refused(sigma_rel):
    with pytest.raises(UserError, match=r"^--sigma_rel must be above 0 and below 0\.28, not"):
        gamma_from_sigma_rel(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10])
def test_the_average_is_the_weighted_sum_of_all_steps(sigma_rel):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    ema = PowerFunctionEMA(model.parameters(), sigma_rel)
    gamma, seen = gamma_from_sigma_rel(sigma_rel), []
    for t in range(1, 41):
        with torch.no_grad():
            model.weight.normal_()
        seen.append(model.weight.detach().clone())
        ema.step(model.parameters())
        assert ema.cur_decay_value == (1 - 1 / t) ** (gamma + 1)
        steps = torch.arange(1, t + 1, dtype=torch.float64)
        weights = (steps ** (gamma + 1) - (steps - 1) ** (gamma + 1)) / t ** (gamma + 1)
        assert weights.sum().item() == pytest.approx(1)
        expected = torch.einsum("t,tij->ij", weights, torch.stack(seen))
        torch.testing.assert_close(ema.shadow_params[0], expected, rtol=0, atol=1e-12)


def test_after_the_first_step_the_initial_weights_do_not_count():
    model = torch.nn.Linear(2, 2)
    ema = PowerFunctionEMA(model.parameters(), 0.1)
    with torch.no_grad():
        model.weight.fill_(0.3)
        ema.shadow_params[0].fill_(0.25)
    ema.step(model.parameters())
    assert torch.equal(ema.shadow_params[0], model.weight)
    assert (ema.optimization_step, ema.cur_decay_value) == (1, 0)


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "ema_snapshots").iterdir()}


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> dict[str, str]:
    """An autoencoder, and a latent cache of 40 images."""
    folder = tmp_path_factory.mktemp("latents")
    vae = save_autoencoder(folder / "vae")
    encode_latents(encode_settings(vae, folder / "cache"))
    return {"vae": vae, "latents": str(folder / "cache")}


@pytest.fixture
def config(denoiser_config, latents):
    return denoiser_config(**latents, **SETTINGS)


@pytest.fixture(scope="module")
def whole(latents, tmp_path_factory) -> Path:
    """An uninterrupted run; tests change copies of it."""
    folder = tmp_path_factory.mktemp("whole")
    train_denoiser(short_denoiser(folder, **latents, **SETTINGS))
    return folder / "denoiser"


def test_an_interrupted_run_saves_the_same_snapshots_as_an_uninterrupted_one(
    config, whole, tmp_path
):
    run = tmp_path / "denoiser"
    expected = files(whole)
    assert sorted(expected) == [
        f"step-00000{step}-sigma_rel-{sigma_rel}.safetensors"
        for step in (2, 4, 5)
        for sigma_rel in ("0.050", "0.100")
    ]
    resumed = replace(config, resume_from_checkpoint="latest")
    with pytest.raises(SystemExit):
        train_denoiser(resumed, stop=StopAfter(1))
    # As if killed in the fourth step: a complete later snapshot and a half-written one.
    (run / "ema_snapshots").mkdir()
    for name in ("step-000004-sigma_rel-0.050", ".step-000002-sigma_rel-0.100.tmp"):
        (run / "ema_snapshots" / f"{name}.safetensors").write_bytes(b"other")
    with pytest.raises(SystemExit):
        train_denoiser(resumed, stop=StopAfter(2))
    assert sorted(files(run)) == [name for name in sorted(expected) if "-000002-" in name]
    train_denoiser(resumed)
    assert files(run) == expected
    for folder in ("model", "checkpoint-3", "checkpoint-5"):
        assert_same_weights(run / folder, whole / folder)
    # A resumed finished run saves its last snapshots again, and no other files.
    for path in (run / "ema_snapshots").glob("step-000005-*"):
        path.unlink()
    train_denoiser(resumed)
    assert files(run) == expected


def test_snapshots_are_plain_safetensors_of_the_averages_in_the_checkpoint(whole):
    found = list_snapshots(whole)
    assert [(x.step, x.sigma_rel) for x in found] == [
        (step, sigma_rel) for step in (2, 4, 5) for sigma_rel in (0.05, 0.10)
    ]
    for snapshot in found[-2:]:
        folder = whole / "checkpoint-5" / f"unet_ema_{1000 * snapshot.sigma_rel:03.0f}"
        average = load_file(folder / "diffusion_pytorch_model.safetensors")
        saved = load_file(snapshot.path)
        assert saved.keys() == average.keys()
        for name, tensor in saved.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, average[name]), name
    steps = json.loads((whole / "checkpoint-5" / "state.json").read_text())["average_steps"]
    assert steps == {"unet": 5, "unet_ema_050": 5, "unet_ema_100": 5}


def test_without_snapshots_the_training_is_the_same(config, whole, tmp_path):
    train_denoiser(replace(config, ema_snapshot_steps=None))
    run = tmp_path / "denoiser"
    names = sorted(path.name for path in run.iterdir())
    checkpoints = ["checkpoint-3", "checkpoint-5"]
    assert names == [*checkpoints, "config.yaml", "logs", "model", "report.html", "samples"]
    found = {str(x.relative_to(run / "checkpoint-5")) for x in (run / "checkpoint-5").rglob("*.*")}
    model = ("config.json", "diffusion_pytorch_model.safetensors")
    assert found == {
        "state.json",
        "unet_optimizer.safetensors",
        *(f"{folder}/{file}" for folder in ("unet", "unet_ema") for file in model),
    }
    state = json.loads((run / "checkpoint-5" / "state.json").read_text())
    assert state["average_steps"] == {"unet": 5}
    # Saving snapshots does not change the model.
    assert_same_weights(run / "model", whole / "model")


def test_a_run_over_an_older_one_removes_its_snapshots(config, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "denoiser")
    (run / "ema_snapshots" / "notes.txt").write_text("mine")
    shorter = replace(config, overwrite_output_dir=True, max_train_steps=1)
    train_denoiser(shorter)
    assert sorted(files(run)) == [
        "notes.txt",
        "step-000001-sigma_rel-0.050.safetensors",
        "step-000001-sigma_rel-0.100.safetensors",
    ]
    (run / "ema_snapshots" / "notes.txt").unlink()
    train_denoiser(replace(shorter, ema_snapshot_steps=None))
    assert not (run / "ema_snapshots").exists()


def test_a_checkpoint_without_the_averages_is_named(config, tmp_path, capsys):
    without = replace(config, ema_snapshot_steps=None, max_train_steps=3)
    train_denoiser(without)
    resumed = replace(config, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="checkpoint-3 is damaged or of another training") as raised:
        train_denoiser(resumed)
    assert "unet_ema_050" in str(raised.value) and "\n" not in str(raised.value)
    # The opposite change just ends the averages.
    train_denoiser(replace(config, output_dir=str(tmp_path / "with"), max_train_steps=3))
    given_up = replace(resumed, output_dir=str(tmp_path / "with"), ema_snapshot_steps=None)
    train_denoiser(given_up)
    assert "--ema_snapshot_steps is None from now on, 2 until now" in capsys.readouterr().out
    assert {snapshot.step for snapshot in list_snapshots(tmp_path / "with")} == {2, 3}


def test_snapshots_of_another_training_are_not_mixed_with_its_own(config, tmp_path):
    train_denoiser(replace(config, output_dir=str(tmp_path / "first"), max_train_steps=3))
    train_denoiser(replace(config, output_dir=str(tmp_path / "second"), seed=1))
    before = {snapshot.training for snapshot in list_snapshots(tmp_path / "second")}
    resumed = replace(
        config,
        output_dir=str(tmp_path / "second"),
        overwrite_output_dir=True,
        resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"),
    )
    train_denoiser(resumed)
    (first,) = {snapshot.training for snapshot in list_snapshots(tmp_path / "first")}
    found = list_snapshots(tmp_path / "second")
    assert {snapshot.training for snapshot in found} == {first} != before
    assert {snapshot.step for snapshot in found} == {4, 5}, "no earlier one of the other run"
    report = json.loads((tmp_path / "second" / "model" / "training.json").read_text())
    assert report["ema_training"] == first


def test_a_skipped_step_counts_too(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_latent.training.denoiser_loop.NonFiniteGuard.check",
        lambda *given: torch.tensor(float(given[1] == 2)),
    )
    train_denoiser(config)
    state = json.loads((tmp_path / "denoiser" / "checkpoint-5" / "state.json").read_text())
    assert state["average_steps"] == {"unet": 5, "unet_ema_050": 5, "unet_ema_100": 5}


def test_zero_steps_between_snapshots_are_refused(denoiser_config):
    with pytest.raises(UserError, match=r"^--ema_snapshot_steps must be .* above 0, not 0"):
        denoiser_config(ema_snapshot_steps=0)
