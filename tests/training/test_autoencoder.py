import json
import math

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image

from hf_latent.command import parse_config
from hf_latent.data.images import open_images
from hf_latent.errors import UserError
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.models.frozen import hash_weights
from hf_latent.training.autoencoder import (
    AutoencoderConfig,
    TrainableAutoencoder,
    train_autoencoder,
)
from hf_latent.training.latents import encode_moments
from tests.conftest import make_autoencoder


def test_a_run_leaves_a_folded_autoencoder_and_its_log(autoencoder_config, tmp_path):
    config = autoencoder_config()
    summary = train_autoencoder(config)
    run = tmp_path / "autoencoder"
    assert summary.model_dir == run / "model"
    assert summary.steps == 4
    assert sorted(p.name for p in run.iterdir()) == ["config.yaml", "logs", "model", "samples"]
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "step-000002.png",
        "step-000004.png",
    ]
    assert Image.open(run / "samples" / "step-000004.png").size == (8 * 64, 2 * 64)
    lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert sorted(summary.validation_losses) == [2, 4]
    assert lines[-1]["kl_nats_per_latent_value"] == summary.kl_nats_per_latent_value > 0

    vae = AutoencoderKL.from_pretrained(run / "model", use_safetensors=True)
    splits = open_images(config)
    moments = encode_moments(vae, splits.train, Accelerator(), config)
    variance = moments.mean.var((0, 1, 3, 4), correction=0) + moments.std.square().mean(
        (0, 1, 3, 4)
    )
    torch.testing.assert_close(moments.mean.mean((0, 1, 3, 4)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(4), rtol=1e-4, atol=0)

    saved = parse_config(AutoencoderConfig, ["--config", str(run / "config.yaml")])
    assert saved.validation_fingerprint == splits.validation_fingerprint
    assert saved.max_train_steps == 4


def test_training_lowers_the_held_out_loss(autoencoder_config):
    summary = train_autoencoder(
        autoencoder_config(
            max_train_steps=40, validation_steps=2, learning_rate=3e-3, ema_decay=0.8
        )
    )
    losses = list(summary.validation_losses.values())
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(autoencoder_config, tmp_path):
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        summary = train_autoencoder(
            autoencoder_config(seed=seed, output_dir=str(tmp_path / name), max_train_steps=2)
        )
        hashes.append(hash_weights(AutoencoderKL.from_pretrained(summary.model_dir)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_trainable_autoencoder_samples_the_posterior_with_given_noise(images):
    vae = make_autoencoder()
    noise = torch.randn(4, 4, 4, 4)
    reconstructions, mean, logvar = TrainableAutoencoder(vae)(images, noise)
    posterior = vae.encode(images).latent_dist
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(logvar, posterior.logvar)
    expected = vae.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(reconstructions, expected)


def test_rgb_images_of_any_shape(autoencoder_config, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (60, 40 + i), (20 * i, 255 - 20 * i, 99)).save(folder / f"{i}.png")
    config = autoencoder_config(
        data=str(folder),
        resolution="24,40",
        resize_mode="crop",
        horizontal_flip=True,
        latent_channels=2,
        max_train_steps=2,
        gradient_accumulation_steps=2,
    )
    vae = AutoencoderKL.from_pretrained(train_autoencoder(config).model_dir)
    assert (vae.config.in_channels, vae.config.latent_channels) == (3, 2)
    splits = open_images(config)
    posterior = vae.encode(splits.train[0]["images"][None]).latent_dist
    assert measure_latents(sum_latents([posterior])).mean.shape == (2,)
    assert posterior.mean.shape == (1, 2, 6, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 30}, "multiples of its downsampling factor 4"),
        ({"train_batch_size": 0}, "--train_batch_size must be above 0"),
        ({"lr_warmup_ratio": 1.0}, "--lr_warmup_ratio"),
        ({"max_train_minutes": 0.0}, "--max_train_minutes"),
        ({"ema_decay": 1.0}, "--ema_decay"),
        ({"data": "/nowhere/photos"}, "/nowhere/photos"),
        ({"validation_fingerprint": "0" * 16}, "fingerprint"),
    ],
)
def test_bad_settings_leave_no_folder(autoencoder_config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_autoencoder(autoencoder_config(**changes))
    assert not (tmp_path / "autoencoder").exists()


def test_a_run_does_not_write_over_another(autoencoder_config, tmp_path):
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has files in it"):
        train_autoencoder(autoencoder_config())
    assert [p.name for p in (tmp_path / "autoencoder").iterdir()] == ["notes.txt"]
