import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.inspection.latent_figures import (
    LatentMoments,
    PosteriorRate,
    measure_smoothness,
    normal_distance,
)
from hf_latent.evaluation.inspection.pictures import NOISE_LEVELS
from hf_latent.models.fold import LatentStatistics, fold_latent_scale
from hf_latent.models.load import load_autoencoder


@pytest.fixture
def latents() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 3, 4, 4, generator=generator)
    values[:, 1] = 0.8 * values[:, 0] + 0.6 * values[:, 1]
    values[:, 2] = values[:, 2].exp()  # skewed
    return values * torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1) + 1


def added_up(latents: torch.Tensor, means: torch.Tensor | None = None) -> LatentMoments:
    moments = LatentMoments(latents.shape[1])
    for a, b in zip(
        latents.split(70), (latents if means is None else means).split(70), strict=True
    ):
        moments.update(a, b)
    return moments


def test_moments_over_batches_equal_numpys_over_all_values(latents):
    figures = added_up(latents).figures()
    values = latents.double().transpose(0, 1).flatten(1).numpy()
    centred = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    np.testing.assert_allclose(figures["latent_mean"], values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(figures["latent_std"], values.std(1), rtol=1e-6)
    np.testing.assert_allclose(figures["latent_skewness"], (centred**3).mean(1), atol=1e-6)
    np.testing.assert_allclose(
        figures["latent_excess_kurtosis"], (centred**4).mean(1) - 3, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(figures["latent_correlation"], np.corrcoef(values), atol=1e-6)
    assert figures["latent_correlation"][0][1] == pytest.approx(0.8, abs=0.02)


def test_the_skewed_channel_is_the_least_normal(latents):
    distances = added_up(latents).figures()["latent_ks_distance"]
    assert distances[2] > 0.1 > 0.03 > max(distances[:2])


def test_normal_distance_is_the_kolmogorov_smirnov_distance():
    values = torch.tensor([-0.5, 0.1, 1.2], dtype=torch.float64)
    below = [0.5 * (1 + math.erf(x / math.sqrt(2))) for x in values.tolist()]
    gaps = [abs(f - step) for i, f in enumerate(below) for step in (i / 3, (i + 1) / 3)]
    assert normal_distance(values.flip(0)) == pytest.approx(max(gaps))


def test_channels_that_do_not_depend_on_the_image_are_dead(latents):
    means = latents.clone()
    means[:, 1] = 1 + 0.05 * (latents[:, 1] - 1)  # 1/400 of the variance
    constant = latents.clone()
    constant[:, 2] = 0.3
    assert added_up(latents).figures()["dead_channels"] == []
    assert added_up(latents, means).figures()["dead_channels"] == [1]
    assert added_up(constant).figures()["dead_channels"] == [2]


def posterior(seed: int = 0, scale: float = 1.0) -> DiagonalGaussianDistribution:
    generator = torch.Generator().manual_seed(seed)
    mean = scale * torch.randn(50, 2, 4, 4, generator=generator)
    logvar = torch.randn(50, 2, 4, 4, generator=generator) - 3 + 2 * math.log(scale)
    return DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))


def test_the_kl_equals_diffusers_kl():
    rate = PosteriorRate(make_plain(2))
    expected = []
    for seed in (0, 1):
        rate.update(posterior(seed))
        expected.append(posterior(seed).kl())
    bits = torch.cat(expected).mean().item() / math.log(2)
    assert rate.bits_per_image()["kl_bits"] == pytest.approx(bits, rel=1e-5)


def make_plain(channels: int):
    from tests.conftest import make_autoencoder

    return make_autoencoder(latent_channels=channels)


def test_the_rate_does_not_depend_on_the_scale_and_is_never_above_the_kl():
    rates = []
    for scale in (0.2, 1.0, 7.0):
        rate = PosteriorRate(make_plain(2))
        rate.update(posterior(scale=scale))
        bits = rate.bits_per_image()
        assert bits["rate_bits"] <= bits["kl_bits"]
        rates.append(bits["rate_bits"])
    assert rates == pytest.approx([rates[0]] * 3, rel=1e-5)


def test_the_rate_is_the_kl_to_a_normal_with_the_latents_moments():
    rate = PosteriorRate(make_plain(2))
    rate.update(posterior())
    mean, var = (x.double() for x in (posterior().mean, posterior().var))
    own_mean = mean.mean((0, 2, 3), keepdim=True)
    own_var = ((mean - own_mean).square() + var).mean((0, 2, 3), keepdim=True)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, var.sqrt()),
        torch.distributions.Normal(own_mean.expand_as(mean), own_var.sqrt().expand_as(mean)),
    )
    expected = kl.sum((1, 2, 3)).mean().item() / math.log(2)
    assert rate.bits_per_image()["rate_bits"] == pytest.approx(expected, rel=1e-5)


def test_a_folded_scale_changes_neither_figure(images):
    vae = make_plain(2)
    statistics = LatentStatistics(
        torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.1]).double()
    )
    found = []
    for model in (vae, fold_latent_scale(vae, statistics)):
        rate = PosteriorRate(model)
        with torch.no_grad():
            rate.update(model.encode(images).latent_dist)
        found.append(rate.bits_per_image())
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_more_noise_in_the_latent_lowers_the_psnr():
    dataset = open_images(ImagesConfig(resize_mode="pad")).validation.evenly_spaced(8)
    vae, std = load_autoencoder("fashion-mnist-f4"), torch.ones(4)
    figures = measure_smoothness(vae, dataset, std, seed=0, batch_size=8)
    assert figures["latent_noise_levels"] == NOISE_LEVELS
    psnr = figures["latent_noise_psnr_db"]
    assert all(before > after for before, after in pairwise(psnr))
    by_threes = measure_smoothness(vae, dataset, std, seed=0, batch_size=3)
    assert by_threes["latent_noise_psnr_db"] == pytest.approx(psnr, abs=1)
    less = measure_smoothness(vae, dataset, std / 4, seed=0, batch_size=8)
    assert all(a > b for a, b in zip(less["latent_noise_psnr_db"], psnr, strict=True))
