"""A training that diverged ends with one line, and saves no model."""

import math

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hf_latent.errors import UserError
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.run.accelerator import create_optimizer
from hf_latent.training.run.checkpoints import TrainingState, resume_training, save_checkpoint
from hf_latent.training.run.ema import create_ema
from tests.conftest import make_autoencoder

DIVERGING = {"learning_rate": 1e15, "lr_warmup_ratio": 0.0, "validation_steps": 100}


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_settings_that_are_not_finite_are_refused(autoencoder_config, denoiser_config, value):
    for config, name in (
        (autoencoder_config, "learning_rate"),
        (autoencoder_config, "kl_weight"),
        (denoiser_config, "timestep_logit_mean"),
        (denoiser_config, "guidance_scale"),
    ):
        with pytest.raises(UserError, match=f"^--{name} must be .*, not {value}$"):
            config(**{name: value})


def test_a_diverged_autoencoder_replaces_no_good_one(autoencoder_config, tmp_path):
    model = train_autoencoder(
        autoencoder_config(max_train_steps=2, checkpointing_steps=2)
    ).model_dir
    before = hash_weights(load_autoencoder(str(model)))
    config = autoencoder_config(max_train_steps=5, resume_from_checkpoint="latest", **DIVERGING)
    with pytest.raises(UserError, match=r"the held-out loss is (nan|inf) after step 5: the train"):
        train_autoencoder(config)
    assert hash_weights(load_autoencoder(str(model))) == before
    assert (tmp_path / "autoencoder" / "checkpoint-2").is_dir()


def test_a_diverged_denoiser_is_not_saved(denoiser_config, tmp_path):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    with pytest.raises(UserError, match=r"the held-out loss is (nan|inf) after step 3: the train"):
        train_denoiser(denoiser_config(max_train_steps=3, **DIVERGING))
    assert not (tmp_path / "denoiser" / "model").exists()


@pytest.mark.parametrize("part", ["weights", "average"])
def test_weights_that_are_not_finite_are_in_no_checkpoint(tmp_path, part):
    accelerator, vae = Accelerator(), make_autoencoder()
    average = create_ema(vae, 0.9, torch.device("cpu"))
    optimizer = accelerator.prepare(create_optimizer(vae, 1e-3, 0.0, (0.9, 0.99)))
    state = TrainingState({"vae": vae}, {"vae": optimizer}, {"vae": {"ema": average}}, {})
    save_checkpoint(tmp_path, 1, state, {}, 1, accelerator)
    spoiled = next(iter(vae.parameters() if part == "weights" else average.shadow_params))
    with torch.no_grad():
        spoiled[0] = math.nan
    message = "step 2 is not saved, because 1 weights of the vae.* are not finite .encoder.conv_in"
    with pytest.raises(UserError, match=message):
        save_checkpoint(tmp_path, 2, state, {}, 1, accelerator)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    resume_training(tmp_path / "checkpoint-1", state, {}, accelerator)
    assert all(x.isfinite().all() for x in [*vae.parameters(), *average.shadow_params])


def test_a_damaged_checkpoint_is_refused(tmp_path):
    accelerator, vae = Accelerator(), make_autoencoder()
    optimizer = accelerator.prepare(create_optimizer(vae, 1e-3, 0.0, (0.9, 0.99)))
    state = TrainingState({"vae": vae}, {"vae": optimizer}, {}, {})
    save_checkpoint(tmp_path, 1, state, {}, 1, accelerator)
    file = tmp_path / "checkpoint-1" / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.bias"][0] = math.inf
    save_file(weights, file)
    with pytest.raises(UserError, match=r"model.safetensors is damaged, its checksum differs"):
        resume_training(tmp_path / "checkpoint-1", state, {}, accelerator)
