import numpy as np
import pytest
import torch

from hf_latent.evaluation.reconstruction import center_crop, measure_reconstructions


def test_psnr_is_the_mean_of_per_image_values():
    originals = torch.full((2, 1, 16, 16), 0.5)
    reconstructions = originals + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    figures = measure_reconstructions([(originals, reconstructions)])
    # -10 log10(mse): 20 dB and 40 dB, whatever the batches.
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


def test_center_crop_undoes_padding():
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(center_crop(torch.nn.functional.pad(image, (2, 2, 2, 2)), 28), image)
