from dataclasses import asdict

import pytest

from autoencoder_figures import check_ablation
from hf_latent.errors import UserError
from hf_latent.output import write_json
from hf_latent.training.autoencoder_config import AutoencoderConfig

FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def ablation(tmp_path):
    """Return a function that writes the reports of two runs, the second with changes."""

    def write(changes: dict) -> list[str]:
        for name, changed in (("L1", {}), ("L2", changes)):
            folder = tmp_path / name
            folder.mkdir()
            config = AutoencoderConfig(output_dir=str(folder), max_train_steps=100)
            report = asdict(config) | {"validation_fingerprint": FINGERPRINT, "seconds": 9}
            write_json(folder / "report.json", report | changed)
        return [f"{name}={tmp_path / name}" for name in ("L1", "L2")]

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reconstruction_loss": "l2", "kl_weight": 1e-6},
        {"perceptual_weight": 0.5, "perceptual_network": "efficientnet-lite0"},
        {"discriminator_weight": 0.5, "discriminator_start": 50, "overwrite_output_dir": True},
        {"seconds": 10},
        {"dataloader_num_workers": 2, "resume_from_checkpoint": "latest"},
    ],
)
def test_runs_of_an_ablation_may_differ_in_their_loss(ablation, changes):
    check_ablation(ablation(changes), FINGERPRINT)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_train_steps": 200},
        {"latent_channels": 8},
        {"learning_rate": 1e-4},
        {"train_batch_size": 128},
        {"seed": 1},
        {"max_train_samples": 10},
    ],
)
def test_runs_of_an_ablation_may_differ_in_nothing_else(ablation, tmp_path, changes):
    (name,) = changes
    with pytest.raises(UserError) as refused:
        check_ablation(ablation(changes), FINGERPRINT)
    message = f"{tmp_path / 'L2'} differs from the ablation's first run in {name}"
    assert str(refused.value) == message


def test_a_run_with_other_held_out_images_is_refused(ablation, tmp_path):
    runs = ablation({"validation_fingerprint": "f" * 16})
    with pytest.raises(UserError, match=f"^{tmp_path / 'L2'} has other held-out images"):
        check_ablation(runs, FINGERPRINT)
    with pytest.raises(UserError, match=f"^{tmp_path / 'L1'} has other held-out images"):
        check_ablation(runs, "f" * 16)


def test_an_unfinished_run_is_refused(ablation, tmp_path):
    runs = ablation({})
    (tmp_path / "L2" / "report.json").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path / 'L2'} is not a finished run"):
        check_ablation(runs, FINGERPRINT)
