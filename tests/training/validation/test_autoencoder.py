import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.networks import load_feature_network
from hf_latent.evaluation.pictures import GAP
from hf_latent.models.frozen import hash_weights
from hf_latent.training.run.pictures import picture_path
from hf_latent.training.validation.autoencoder import (
    DEAD_CHANNEL_VARIANCE,
    HeldOutFigures,
    validate_autoencoder,
)
from tests.conftest import make_autoencoder


@pytest.fixture
def setting(autoencoder_config, tmp_path):
    """An autoencoder, 13 held-out images (batches of 8 and 5) and the settings."""
    config = autoencoder_config()
    (tmp_path / "autoencoder" / "samples").mkdir(parents=True)
    held_out = open_images(config).validation.evenly_spaced(13)
    vae = make_autoencoder(sample_size=32)
    with torch.no_grad():
        vae.quant_conv.weight[:4] *= 5  # raise the low variance of untrained channels
    return vae, held_out, config


def validate(vae, held_out, config, step, network=None, previous=None) -> HeldOutFigures:
    loader = DataLoader(held_out, config.train_batch_size)
    picture = picture_path(Path(config.output_dir), step)
    kind = config.reconstruction_loss
    return validate_autoencoder(vae, loader, kind, picture, network, previous)


def stack(held_out) -> torch.Tensor:
    return torch.stack([held_out[i]["images"] for i in range(len(held_out))])


def kill_channel(vae: AutoencoderKL, channel: int) -> None:
    with torch.no_grad():
        vae.quant_conv.weight[channel] = 0


def test_figures_equal_those_of_one_batch(setting):
    vae, held_out, config = setting
    figures = validate(vae, held_out, config, 0)
    images = stack(held_out)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        reconstructions = vae.decode(posterior.mean).sample
    loss = (reconstructions - images).square().mean().item()
    assert figures.loss == pytest.approx(loss, rel=1e-5)
    kl = posterior.kl().mean().item() / (4 * 8 * 8)
    assert figures.kl_nats_per_latent_value == pytest.approx(kl, rel=1e-5)
    errors = (reconstructions.clamp(-1, 1) - images).div(2).square().mean((1, 2, 3))
    psnr = sum(-10 * math.log10(error) for error in errors) / 13
    assert figures.reconstruction.psnr_db == pytest.approx(psnr, rel=1e-5)
    assert figures.reconstruction.images == 13
    shrunk = F.interpolate(images / 2 + 0.5, (16, 16), mode="bicubic", antialias=True)
    resampled = F.interpolate(shrunk, (32, 32), mode="bicubic").clamp(0, 1)
    errors = (resampled - (images / 2 + 0.5)).square().mean((1, 2, 3))
    bicubic = sum(-10 * math.log10(error) for error in errors) / 13
    assert figures.bicubic_psnr_db == pytest.approx(bicubic, rel=1e-5)  # 256 values of 1024
    assert figures.perceptual_distance is None
    mean = posterior.mean.transpose(0, 1).flatten(1).double()
    variance = mean.var(1, correction=0) + posterior.var.double().mean((0, 2, 3))
    assert figures.latent_mean == pytest.approx(mean.mean(1).tolist(), abs=1e-5)
    assert figures.latent_std == pytest.approx(variance.sqrt().tolist(), rel=1e-5)
    alive = (mean.var(1, correction=0) >= DEAD_CHANNEL_VARIANCE).tolist()
    assert alive == [True] * 4
    assert figures.dead_channels == []


def test_the_deviation_is_that_of_posterior_samples(setting):
    vae, held_out, config = setting
    with torch.no_grad():
        # Channel 1 knows nothing about the image, and is all noise of deviation 3.
        vae.quant_conv.weight[5], vae.quant_conv.bias[5] = 0, 2 * math.log(3)
    kill_channel(vae, 1)
    figures = validate(vae, held_out, config, 0)
    assert figures.latent_std[1] == pytest.approx(3, rel=1e-4)
    assert figures.latent_mean[1] == pytest.approx(vae.quant_conv.bias[1].item(), abs=1e-5)
    assert figures.dead_channels == [1]


@pytest.mark.parametrize("dead", [[2], [0, 3], [0, 1, 2, 3]])
def test_dead_channels_are_numbered(setting, dead):
    vae, held_out, config = setting
    for channel in dead:
        kill_channel(vae, channel)
    figures = validate(vae, held_out, config, 0)
    assert figures.dead_channels == dead
    assert figures.scalars()["dead_channels"] == len(dead)
    assert figures.scalars()["alive_channels"] == len(figures.latent_std) - len(dead)


def test_a_channel_is_alive_above_a_variance_of_its_mean(setting):
    vae, held_out, config = setting
    with torch.no_grad():
        variance = vae.encode(stack(held_out)).latent_dist.mean.var((0, 2, 3), correction=0)
        for channel, factor in ((0, 1.1), (1, 0.9)):
            scale = (factor * DEAD_CHANNEL_VARIANCE / variance[channel]).sqrt()
            vae.quant_conv.weight[channel] *= scale
    assert validate(vae, held_out, config, 0).dead_channels == [1]


def test_the_loss_has_the_configured_kind(setting, autoencoder_config):
    vae, held_out, _ = setting
    config = autoencoder_config(reconstruction_loss="l2")
    images = stack(held_out)
    with torch.no_grad():
        reconstructions = vae.decode(vae.encode(images).latent_dist.mean).sample
    expected = torch.nn.functional.mse_loss(reconstructions, images).item()
    loss = validate(vae, held_out, config, 0).loss
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_perceptual_distance_is_the_mean_over_images(setting):
    vae, held_out, config = setting
    network = load_feature_network("efficientnet-lite0")
    figures = validate(vae, held_out, config, 0, network)
    distances = []
    with torch.no_grad():
        for image in stack(held_out).split(1):
            reconstruction = vae.decode(vae.encode(image).latent_dist.mean).sample
            pairs = zip(network(image), network(reconstruction), strict=True)
            distances.append(sum((a - b).square().sum(1).mean().item() for a, b in pairs))
    assert figures.perceptual_distance == pytest.approx(sum(distances) / 13, rel=1e-4)
    assert figures.perceptual_distance > 0.1


def test_scalars_are_flat_and_have_only_measured_figures(setting):
    vae, held_out, config = setting
    figures = validate(vae, held_out, config, 0)
    scalars = figures.scalars()
    assert sorted(scalars) == [
        "alive_channels",
        "bicubic_psnr_db",
        "dead_channels",
        "images",
        "kl_nats_per_latent_value",
        "latent_std_largest",
        "latent_std_smallest",
        "psnr_db",
        "ssim",
    ]
    assert scalars["latent_std_smallest"] == min(figures.latent_std)
    assert scalars["latent_std_largest"] == max(figures.latent_std)
    assert all(isinstance(value, int | float) for value in scalars.values())
    network = load_feature_network("efficientnet-lite0")
    measured = validate(vae, held_out, config, 0, network).scalars()
    assert set(measured) - set(scalars) == {"perceptual_distance"}


def test_pairs_are_saved_and_the_autoencoder_is_unchanged(setting, tmp_path):
    vae, held_out, config = setting
    before = hash_weights(vae.train())
    figures = [validate(vae, held_out, config, step) for step in (3, 4)]
    assert figures[0] == figures[1], "nothing random is in it"
    assert hash_weights(vae) == before
    assert vae.training
    assert all(parameter.grad is None for parameter in vae.parameters())
    picture = tmp_path / "autoencoder" / "samples" / "step-000003.png"
    assert Image.open(picture).size == (8 * 64 + 3 * GAP, 4 * 64)


def test_pairs_are_spread_over_all_batches(setting, tmp_path, monkeypatch):
    vae, held_out, config = setting
    monkeypatch.setattr("hf_latent.training.validation.autoencoder.SHOWN_PAIRS", 4)
    shown = []
    save = "hf_latent.training.validation.autoencoder.save_grid"
    monkeypatch.setattr(save, lambda images, path, **_: shown.append(images))
    validate(vae, held_out, config, 0)
    assert torch.equal(shown[0][::2], stack(held_out)[[0, 4, 8, 10]])  # batches of 8 and 5


def test_a_latent_as_large_as_the_image_has_no_bicubic_yardstick(setting):
    _, held_out, config = setting
    vae = make_autoencoder(sample_size=32, latent_channels=16)
    figures = validate(vae, held_out, config, 0)
    assert figures.bicubic_psnr_db is None
    assert "bicubic_psnr_db" not in figures.scalars()


def test_the_bicubic_yardstick_is_measured_once(setting, monkeypatch):
    vae, held_out, config = setting
    first = validate(vae, held_out, config, 0)
    monkeypatch.setattr("hf_latent.training.validation.autoencoder.resample", None)
    assert validate(vae, held_out, config, 1, previous=first) == first


def test_a_flat_image_does_not_make_the_bicubic_yardstick_infinite(setting):
    vae, held_out, config = setting
    batch = {"images": torch.cat([stack(held_out)[:3], torch.full((1, 1, 32, 32), -1.0)])}
    figures = validate_autoencoder(vae, [batch], "l1", picture_path(Path(config.output_dir), 0))
    assert 20 < figures.bicubic_psnr_db < 60
