import math

import pytest
import torch

from hf_latent.evaluation.inspection.frequencies import BandPower, band_edges, dct_matrix


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_dct_matrix_is_orthonormal_and_follows_the_formula(size):
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    for k in range(size):
        for x in range(size):
            scale = math.sqrt((1 if k == 0 else 2) / size)
            expected = scale * math.cos(math.pi * k * (2 * x + 1) / (2 * size))
            assert matrix[k, x].item() == pytest.approx(expected, abs=1e-12)


def test_bands_are_octaves():
    assert band_edges(32, 48)[:-1] == [1 / 32, 1 / 16, 1 / 8, 1 / 4]
    assert band_edges(32, 48)[-1] == pytest.approx(math.sqrt(0.5))
    assert len(band_edges(2, 2)) == 1
    assert len(band_edges(512, 512)) == 9


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (2, 2), (1, 1)])
def test_bands_and_the_mean_add_up_to_the_mean_square(size):
    images = torch.randn(5, 3, *size, generator=torch.Generator().manual_seed(0)) + 0.3
    power = BandPower(*size)
    for batch in images.split(2):
        power.update(batch)
    mean = images.double().mean((2, 3)).square().mean(0)
    expected = images.double().square().mean((0, 2, 3))
    torch.testing.assert_close(power.by_channel().sum(1) + mean, expected)
    torch.testing.assert_close(power.compute(), power.by_channel().mean(0))


@pytest.mark.parametrize(("k", "band"), [(1, 0), (2, 0), (3, 1), (8, 2), (12, 3), (31, 4)])
def test_a_wave_is_in_the_band_of_its_frequency(k, band):
    wave = dct_matrix(32)[k].float()  # k / 64 cycles per pixel
    power = BandPower(32, 32)
    power.update(wave.expand(1, 1, 32, 32))
    power.update(wave[:, None].expand(1, 1, 32, 32))
    expected = torch.zeros(5, dtype=torch.float64)
    expected[band] = wave.double().square().mean()
    torch.testing.assert_close(power.compute(), expected, rtol=0, atol=1e-8)
