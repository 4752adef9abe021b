import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from hf_latent.errors import UserError
from hf_latent.training import denoiser_loop, losses
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.run.accelerator import create_optimizer
from hf_latent.training.run.checkpoints import TrainingState
from hf_latent.training.run.guard import NonFiniteGuard
from tests.conftest import make_autoencoder

FINE, NAN, INFINITE = torch.tensor(1.0), torch.tensor(torch.nan), torch.tensor(torch.inf)


def test_a_finite_step_is_not_skipped(tmp_path, capsys):
    guard = NonFiniteGuard(tmp_path, Accelerator())
    assert guard.check(0, FINE, [FINE, FINE], {"images_0": torch.ones(1)}) == 0
    guard.catch_up()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("loss", "norms"),
    [(NAN, [FINE]), (INFINITE, [FINE]), (FINE, [NAN]), (FINE, [FINE, INFINITE])],
)
def test_a_step_that_is_not_finite_is_skipped_and_its_batch_saved(tmp_path, capsys, loss, norms):
    guard = NonFiniteGuard(tmp_path, Accelerator())
    batch = {
        "images_0": torch.randn(2, 1, 4, 4).requires_grad_(),
        "noise_0": torch.randn(2, 4, 1, 3).transpose(2, 3),
    }
    assert guard.check(6, loss, norms, batch) == 1
    assert not list(tmp_path.iterdir()), "the host has not read it yet"
    assert guard.check(7, FINE, [FINE], {"images_0": torch.ones(1)}) == 0
    path = tmp_path / "bad_batches" / "step-000007-rank-0.safetensors"
    assert list(path.parent.iterdir()) == [path]
    saved = load_file(path)
    assert saved.keys() == batch.keys()
    for name, tensor in batch.items():
        assert torch.equal(saved[name], tensor), name
    guard.catch_up()
    assert capsys.readouterr().err == (
        f"warning: step 7: the loss is not finite; the step is skipped, its batch is in {path}\n"
    )


def test_catching_up_sees_to_the_last_step_once(tmp_path, capsys):
    guard = NonFiniteGuard(tmp_path, Accelerator())
    guard.catch_up()
    guard.check(2, NAN, [FINE], {})
    for _ in range(2):
        guard.catch_up()
    assert guard.check(3, FINE, [FINE], {}) == 0
    guard.catch_up()
    assert capsys.readouterr().err.count("step 3: the loss is not finite") == 1
    assert [x.name for x in (tmp_path / "bad_batches").iterdir()] == [
        "step-000003-rank-0.safetensors"
    ]


def test_five_skipped_steps_in_a_row_end_the_training(tmp_path):
    guard = NonFiniteGuard(tmp_path, Accelerator())
    for step in range(5):
        assert guard.check(step, NAN, [FINE], {}) == 1
    with pytest.raises(UserError, match="5 steps in a row up to step 5") as raised:
        guard.catch_up()
    assert str(tmp_path / "bad_batches") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(list((tmp_path / "bad_batches").iterdir())) == 5


def test_a_good_step_resets_the_count(tmp_path):
    guard = NonFiniteGuard(tmp_path, Accelerator())
    for step in range(20):
        good = step % 5 == 4
        assert guard.check(step, FINE if good else NAN, [FINE], {}) == (not good)
    guard.catch_up()


@pytest.mark.parametrize("others", [0.0, 1.0, 3.0])
def test_a_bad_loss_in_other_processes_skips_the_step_here(tmp_path, others):
    several = SimpleNamespace(
        process_index=1,
        scaler=None,
        device=torch.device("cpu"),
        reduce=lambda bad, reduction: bad + others,
    )
    guard = NonFiniteGuard(tmp_path, several)
    assert guard.check(0, FINE, [FINE], {"images_0": torch.ones(1)}) == min(others, 1)
    guard.catch_up()
    assert (tmp_path / "bad_batches" / "step-000001-rank-1.safetensors").exists() is bool(others)


class ScaledTraining:
    """One weight, trained under a real gradient scaler, which runs on a CPU too."""

    def __init__(self, folder: Path):
        self.accelerator = Accelerator()
        self.scaler = self.accelerator.scaler = torch.amp.GradScaler("cpu")
        self.guard = NonFiniteGuard(folder, self.accelerator)
        self.model = torch.nn.ParameterDict({"weight": torch.zeros(1)})
        self.weight = self.model["weight"]
        self.optimizer = torch.optim.AdamW([self.weight], fused=True)
        wrapped = SimpleNamespace(optimizer=self.optimizer)
        self.state = TrainingState({"it": self.model}, {"it": wrapped}, {}, {})

    def step(self, number: int, loss: torch.Tensor) -> bool:
        """Do a step; return whether it was skipped."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_([self.weight], 1.0)
        skip = self.guard.check(number, loss.detach(), [norm], {})
        self.state.step_optimizers(["it"], skip, self.accelerator)
        return bool(skip)


def test_the_scaler_may_skip_steps_until_it_finds_a_scale(tmp_path):
    training = ScaledTraining(tmp_path)
    # 60000 fits into fp16 at a scale of 1, which is 16 steps below 2^16. This happens twice.
    for number in range(40):
        if number == 20:
            training.scaler.update(2.0**16)
        skipped = number < 16 or 20 <= number < 36
        loss = (training.weight.half() * 60000).float().sum()
        assert training.step(number, loss) is skipped
        training.guard.catch_up()
        assert training.guard.overflows_in_a_row == (number % 20 + 1 if skipped else 0)
        assert (training.weight == 0) == (number < 16)
    assert training.optimizer.state[training.weight]["step"] == 8, "skipped steps do not count"
    assert not list(tmp_path.iterdir())


def test_gradients_that_overflow_at_every_scale_end_the_training(tmp_path):
    training = ScaledTraining(tmp_path)
    for number in range(40):  # at 0 the slope is infinite
        assert training.step(number, training.weight.abs().sqrt().sum())
    with pytest.raises(UserError, match="gradients were not finite in 40 steps in a row") as error:
        training.guard.catch_up()
    assert "up to step 40" in str(error.value)
    assert "--mixed_precision bf16" in str(error.value)
    assert "\n" not in str(error.value)
    assert training.scaler.get_scale() < 2.0**-22, "all scales of fp16 were tried"


def test_gradients_that_overflow_in_another_process_end_the_training_here(tmp_path):
    two = SimpleNamespace(
        scaler=torch.amp.GradScaler("cpu"),
        device=torch.device("cpu"),
        reduce=lambda bad, reduction: bad + torch.tensor([0.0, 1.0]),
    )
    guard = NonFiniteGuard(tmp_path, two)
    assert all(guard.check(number, FINE, [FINE], {}) for number in range(40))
    with pytest.raises(UserError, match="40 steps in a row"):
        guard.catch_up()


def test_a_skipped_step_leaves_weights_and_moments_as_they_are():
    model = torch.nn.Linear(3, 2)
    accelerator = Accelerator()
    optimizer = accelerator.prepare(create_optimizer(model, 0.1, 0.1, (0.9, 0.99)))
    state = TrainingState({"it": model}, {"it": optimizer}, {}, {})

    def values() -> list[torch.Tensor]:
        moments = [x for entry in optimizer.state.values() for x in entry.values()]
        return [x.detach().clone() for x in [*model.parameters(), *moments]]

    def step(gradient: float, skip: float) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        state.step_optimizers(["it"], torch.tensor(skip), accelerator)

    step(1.0, 0.0)
    before = values()
    assert len(before) == 2 + 2 * 3
    step(torch.nan, 1.0)
    assert all(map(torch.equal, before, values()))
    step(1.0, 0.0)
    assert not any(map(torch.equal, before, values()))


def spoil(monkeypatch, module, name: str, bad_calls: set[int], value: float) -> None:
    """Make a training's loss not finite in some calls (micro-steps, from 0)."""
    loss, calls = getattr(module, name), iter(range(1000))
    monkeypatch.setattr(
        module, name, lambda *x: loss(*x) * (value if next(calls) in bad_calls else 1.0)
    )


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return weights and moments, without averages, which take unchanged weights in too."""
    folder = run / f"checkpoint-{step}"
    return {
        f"{path.relative_to(folder)}:{key}": tensor
        for path in folder.rglob("*.safetensors")
        if not path.parent.name.endswith("_ema")
        for key, tensor in load_file(path).items()
    }


def assert_skipped(run: Path, step: int) -> None:
    """Assert that only that step left weights and moments unchanged."""
    for now in (2, 3, 4):
        before, after = checkpoint(run, now - 1), checkpoint(run, now)
        same = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
        assert after.keys() == before.keys()
        assert all(tensor.isfinite().all() for tensor in after.values())
        if now == step:
            assert len(same) == len(before)
        else:
            assert len(same) < len(before) / 2
    (bad,) = (run / "bad_batches").iterdir()
    assert bad.name == f"step-{step:06d}-rank-0.safetensors"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_autoencoder_survives_a_step_that_is_not_finite(
    autoencoder_config, tmp_path, monkeypatch, capsys, value
):
    # Calls 4 and 5 are the micro-steps of the third step.
    spoil(monkeypatch, losses, "reconstruction_loss", {5}, value)
    config = autoencoder_config(
        gradient_accumulation_steps=2,
        checkpointing_steps=1,
        checkpoints_total_limit=None,
        discriminator_weight=0.5,
        discriminator_base_channels=8,
        discriminator_num_layers=1,
    )
    summary = train_autoencoder(config)
    run = tmp_path / "autoencoder"
    assert_skipped(run, 3)
    batch = load_file(run / "bad_batches" / "step-000003-rank-0.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        f"{name}_{part}": shape
        for name, shape in {"images": (8, 1, 32, 32), "noise": (8, 4, 8, 8)}.items()
        for part in (0, 1)
    }
    assert capsys.readouterr().err.count("step 3: the loss is not finite") == 1
    weights = [
        json.loads((run / f"checkpoint-{step}" / "state.json").read_text())["others"]["adversary"]
        for step in (2, 3, 4)
    ]
    assert weights[0] == weights[1] != weights[2], "the next step measures the weight again"
    vae = AutoencoderKL.from_pretrained(summary.model_dir)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


def test_a_denoiser_survives_a_step_that_is_not_finite(denoiser_config, tmp_path, monkeypatch):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    spoil(monkeypatch, denoiser_loop, "denoising_loss", {2}, torch.nan)
    # Without this, the held-out loss would count as a call.
    config = denoiser_config(
        checkpointing_steps=1,
        checkpoints_total_limit=None,
        validation_steps=100,
        max_validation_samples=4,
    )
    train_denoiser(config)
    assert_skipped(tmp_path / "denoiser", 3)
    batch = load_file(tmp_path / "denoiser" / "bad_batches" / "step-000003-rank-0.safetensors")
    assert batch["noisy_latents_0"].shape == (8, 4, 8, 8)


def test_a_bad_last_step_is_noticed_before_the_model_is_saved(
    denoiser_config, tmp_path, monkeypatch, capsys
):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    spoil(monkeypatch, denoiser_loop, "denoising_loss", {1}, torch.nan)
    train_denoiser(denoiser_config(max_train_steps=2))
    (bad,) = (tmp_path / "denoiser" / "bad_batches").iterdir()
    assert bad.name == "step-000002-rank-0.safetensors"
    assert capsys.readouterr().err.count("step 2: the loss is not finite") == 1


def test_a_training_whose_loss_stays_not_finite_ends_with_one_line(
    autoencoder_config, tmp_path, monkeypatch
):
    spoil(monkeypatch, losses, "reconstruction_loss", set(range(1, 10)), torch.nan)
    with pytest.raises(UserError, match="5 steps in a row up to step 6"):
        train_autoencoder(autoencoder_config(max_train_steps=10, validation_steps=100))
    assert len(list((tmp_path / "autoencoder" / "bad_batches").iterdir())) == 5
    assert not (tmp_path / "autoencoder" / "model").exists()
