import math

import numpy as np
import pytest
import torch

from hf_latent.data.images.pixels import Box
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions


def test_psnr_is_the_mean_of_per_image_values():
    originals = torch.full((2, 1, 16, 16), 0.5)
    reconstructions = originals + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    figures = measure_reconstructions([(originals, reconstructions)])
    # -10 log10(mse): 20 dB and 40 dB, for any batches.
    assert figures.psnr_db == pytest.approx(30.0, abs=1e-3)
    assert figures.images == 2
    batches = [(originals[i : i + 1], reconstructions[i : i + 1]) for i in range(2)]
    assert measure_reconstructions(batches).psnr_db == pytest.approx(figures.psnr_db)


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    originals = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    figures = [
        measure_reconstructions([(originals, originals + level * noise)]).ssim
        for level in (0.0, 0.05, 0.2)
    ]
    assert figures[0] == pytest.approx(1.0, abs=1e-4)
    assert figures[0] > figures[1] > figures[2]


def test_reconstructions_are_clamped_first():
    originals = torch.ones(1, 1, 16, 16) * 0.9
    figures = measure_reconstructions([(originals, torch.full_like(originals, 7.0))])
    assert figures.psnr_db == pytest.approx(-10 * np.log10(0.01), abs=1e-3)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean over images of each image's PSNR, in plain torch."""
    errors = [(x - y).square().mean() for x, y in zip(a, b, strict=True)]
    return sum(-10 * math.log10(error) for error in errors) / len(errors)


def on(background: float, images: torch.Tensor) -> torch.Tensor:
    alpha = images[:, 3:4].expand(-1, 3, -1, -1)
    return torch.lerp(torch.full_like(alpha, background), images[:, :3], alpha)


@pytest.fixture
def rgba() -> torch.Tensor:
    images = torch.rand(3, 4, 24, 20, generator=torch.Generator().manual_seed(0))
    images[:, 3, :9] = 0  # transparent above
    return images


def test_rgba_is_measured_on_white_on_grey_and_in_alpha(rgba):
    noise = torch.randn(rgba.shape, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([0.01, 0.1, 0.3]).view(3, 1, 1, 1)
    reconstructions = rgba + levels * noise
    figures = measure_reconstructions(
        [(rgba[:2], reconstructions[:2]), (rgba[2:], reconstructions[2:])]
    )
    clamped = reconstructions.clamp(0, 1)
    assert figures.psnr_db == pytest.approx(psnr(on(1.0, clamped), on(1.0, rgba)), abs=1e-3)
    assert figures.grey_psnr_db == pytest.approx(psnr(on(0.5, clamped), on(0.5, rgba)), abs=1e-3)
    assert figures.alpha_psnr_db == pytest.approx(psnr(clamped[:, 3:], rgba[:, 3:]), abs=1e-3)
    assert figures.images == 3
    seen = {figures.psnr_db, figures.grey_psnr_db, figures.alpha_psnr_db}
    assert len({round(x, 2) for x in seen}) == 3
    for background, found in ((1.0, figures.ssim), (0.5, figures.grey_ssim)):
        shown = measure_reconstructions([(on(background, rgba), on(background, clamped))])
        assert found == pytest.approx(shown.ssim, abs=1e-5)


def test_colour_under_full_transparency_counts_for_nothing(rgba):
    hidden = rgba.clone()
    hidden[:, :3, :9] = 1 - rgba[:, :3, :9]
    noisy = (rgba + 0.1).clamp(0, 1)
    noisy[:, 3] = rgba[:, 3]
    noisy_too = torch.where(rgba[:, 3:] == 0, hidden, noisy)
    noisy_too[:, 3] = rgba[:, 3]
    assert measure_reconstructions([(rgba, noisy_too)]) == measure_reconstructions([(rgba, noisy)])
    visible = measure_reconstructions([(rgba, hidden)])
    assert visible.psnr_db == visible.grey_psnr_db == visible.alpha_psnr_db == math.inf


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6])
def test_other_channels_have_no_alpha_figures(channels):
    images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    figures = measure_reconstructions([(images, images.flip(3))])
    assert figures.psnr_db == pytest.approx(psnr(images.flip(3), images), abs=1e-3)
    assert math.isfinite(figures.ssim)
    assert figures.grey_psnr_db is figures.grey_ssim is figures.alpha_psnr_db is None
    colours = (figures.luma_r2, figures.chroma_r2)
    assert all(x is None for x in colours) is (channels != 3)


@pytest.mark.parametrize("size", [(8, 8), (10, 32), (32, 10)])
@pytest.mark.parametrize("channels", [3, 4])
def test_images_smaller_than_the_window_have_no_ssim(size, channels):
    images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    figures = measure_reconstructions([(images, images.flip(3))])
    assert math.isnan(figures.ssim)
    assert math.isfinite(figures.psnr_db)
    larger = torch.rand(2, channels, 11, 11, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(measure_reconstructions([(larger, larger.flip(3))]).ssim)


def test_a_box_undoes_padding():
    image = torch.rand(2, 1, 28, 28)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    assert torch.equal(Box(2, 2, 28, 28).cut(padded), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_padded_images_are_also_measured_without_padding(channels):
    box = Box(top=2, left=4, height=24, width=20)
    generator = torch.Generator().manual_seed(0)
    content = torch.rand(5, channels, 24, 20, generator=generator)
    originals = torch.nn.functional.pad(content, (4, 4, 2, 2))
    reconstructions = originals + 0.1 * torch.randn(originals.shape, generator=generator)
    pairs = [(originals[:2], reconstructions[:2]), (originals[2:], reconstructions[2:])]
    figures = measure_reconstructions(pairs, box)
    inside = measure_reconstructions([(content, reconstructions[:, :, 2:26, 4:24])])
    assert figures.unpadded_psnr_db == pytest.approx(inside.psnr_db, abs=1e-3)
    assert figures.unpadded_ssim == pytest.approx(inside.ssim, abs=1e-4)
    whole = measure_reconstructions(pairs)
    assert whole.unpadded_psnr_db is None
    assert figures.psnr_db == pytest.approx(whole.psnr_db)
