import math

import pytest
import torch

from hf_latent.evaluation.inspection.structure import (
    Agreement,
    NoiseSurvival,
    heavy_blur,
    sobel_edges,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_edges_are_the_length_of_the_gradient():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    ramps = torch.stack([3 * x, 4 * y, 3 * x + 4 * y])[None]
    inner = sobel_edges(ramps)[:, :, 1:-1, 1:-1]
    expected = torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1).expand(1, 3, 7, 10)
    torch.testing.assert_close(inner, expected)
    flat = sobel_edges(torch.full((2, 1, 8, 8), 0.7))
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-6)


def test_a_heavy_blur_keeps_layout_and_drops_detail():
    flat = torch.full((1, 2, 32, 32), 0.3)
    torch.testing.assert_close(heavy_blur(flat), flat)
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    inner = heavy_blur(checks.float()[None, None])[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=1e-3)


def test_the_blur_is_a_gaussian_of_a_sixteenth_of_the_shorter_side():
    point = torch.zeros(1, 1, 65, 97)
    point[0, 0, 32, 48] = 1
    spread = heavy_blur(point)[0, 0]
    places = torch.arange(65.0) - 32
    variance = (spread.sum(1) * places.square()).sum() / spread.sum()
    assert variance.sqrt().item() == pytest.approx(65 / 16, rel=0.02)


def test_agreement_is_the_share_of_explained_variance():
    originals, error = random(6, 2, 8, 8) + 3, 0.1 * random(6, 2, 8, 8, seed=1)
    agreement = Agreement()
    for rows in (slice(0, 4), slice(4, 6)):
        agreement.update(originals[rows], (originals + error)[rows])
    variance = (originals - originals.mean((2, 3), keepdim=True)).square().sum()
    expected = 1 - (error.square().sum() / variance).item()
    assert agreement.compute() == pytest.approx(expected, abs=1e-5)


def test_agreement_is_1_for_equal_maps_0_for_means_and_nan_for_flat_maps():
    originals = random(3, 1, 8, 8)
    for others, expected in (
        (originals, 1.0),
        (originals.mean((2, 3), keepdim=True).expand_as(originals), 0.0),
    ):
        agreement = Agreement()
        agreement.update(originals, others)
        assert agreement.compute() == pytest.approx(expected, abs=1e-6)
    flat = Agreement()
    flat.update(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    assert math.isnan(flat.compute())


def test_noise_that_comes_back_in_part():
    noise, other = random(4, 1, 64, 64), random(4, 1, 64, 64, seed=1)
    survival = NoiseSurvival()
    for rows in (slice(0, 1), slice(1, 4)):
        survival.update(noise[rows], 0.3 * noise[rows])
    figures = survival.compute()
    assert figures["noise_survival"] == pytest.approx(0.3)
    assert figures["noise_agreement"] == pytest.approx(1.0)
    assert figures["noise_gain"] == pytest.approx(0.09)
    unrelated = NoiseSurvival()
    unrelated.update(noise, other)
    assert abs(unrelated.compute()["noise_survival"]) < 0.03
    assert unrelated.compute()["noise_gain"] == pytest.approx(1, abs=0.05)
    gone = NoiseSurvival()
    gone.update(noise, torch.zeros_like(noise))
    assert gone.compute() == {"noise_survival": 0, "noise_agreement": 0, "noise_gain": 0}
