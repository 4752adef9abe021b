import pytest
import torch

from hf_latent.evaluation.inspection.pictures import (
    NOISE_LEVELS,
    STEPS,
    channel_maps,
    channel_rows,
    interpolation_rows,
    latent_noise_rows,
)
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images
from tests.conftest import make_autoencoder


def test_channel_maps_are_grey_from_minus_3_to_3_deviations():
    latents = torch.tensor([-3.0, 0.0, 3.0, 9.0]).view(1, 4, 1, 1)
    maps = channel_maps(latents, 2, 3)
    assert maps.shape == (1, 4, 1, 2, 3)
    expected = torch.tensor([0, 0.5, 1, 1]).view(1, 4, 1, 1, 1).expand_as(maps)
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_row_has_the_image_its_reconstruction_and_every_channel(channels):
    vae = make_autoencoder(channels)
    images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = torch.zeros(4).double(), torch.ones(4).double()
    rows = channel_rows(vae, images, mean, std)
    assert rows.shape == (2, 2 + 4, channels, 16, 16)
    torch.testing.assert_close(rows[:, 0], images / 2 + 0.5)
    expected = reconstruct(vae, images).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(rows[:, 1], expected)
    if channels == 4:
        assert (rows[:, 2:, 3] == 1).all()  # latents are not transparent


def test_interpolation_starts_and_ends_at_the_images(vae, images):
    rows = interpolation_rows(vae, images)
    assert rows.shape == (2, STEPS, 1, 16, 16)
    reconstructions = reconstruct(vae, images) / 2 + 0.5
    torch.testing.assert_close(rows[:, 0], reconstructions[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[:, -1], reconstructions[2:], rtol=0, atol=1e-5)
    with torch.no_grad():
        latents = encode_images(vae, images, sample_posterior=False)
        third = latents[:2] + (latents[2:] - latents[:2]) * 2 / (STEPS - 1)
        expected = decode_latents(vae, third) / 2 + 0.5
    torch.testing.assert_close(rows[:, 2], expected, rtol=0, atol=1e-5)


def test_noise_grows_along_the_row(vae, images):
    rows = latent_noise_rows(vae, images, torch.ones(4), torch.Generator().manual_seed(0))
    assert rows.shape == (4, 1 + len(NOISE_LEVELS), 1, 16, 16)
    expected = reconstruct(vae, images) / 2 + 0.5
    torch.testing.assert_close(rows[:, 0], expected, rtol=0, atol=1e-5)
    change = (rows - rows[:, :1]).square().mean((0, 2, 3, 4))
    assert (change.diff() > 0).all()
