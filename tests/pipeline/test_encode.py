import pytest
import torch
from diffusers import AutoencoderTiny

from hf_latent.pipeline.decode import decode_latents, denormalize_latents
from hf_latent.pipeline.encode import (
    downsampling_factor,
    encode_images,
    encode_posteriors,
    normalize_latents,
)
from tests.conftest import make_autoencoder

SCALES = {
    "scaling_factor": {"scaling_factor": 0.18215},
    "shift_factor": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "mean_and_std": {
        "scaling_factor": 0.5,
        "latents_mean": [0.1, -0.2, 0.3, -0.4],
        "latents_std": [1.5, 0.5, 2.0, 3.0],
    },
    "all_four": {
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "latents_mean": [0.1, -0.2, 0.3, -0.4],
        "latents_std": [1.5, 0.5, 2.0, 3.0],
    },
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_normalize_and_denormalize_are_inverse(vae, scale):
    vae.register_to_config(**scale)
    latents = torch.randn(3, 4, 5, 6)
    normalized = normalize_latents(vae, latents)
    assert (normalized - latents).abs().max() > 0.1
    torch.testing.assert_close(denormalize_latents(vae, normalized), latents)


def test_foreign_scales_follow_the_conventions_of_stock_pipelines(vae):
    latents = torch.randn(2, 4, 3, 3)
    vae.register_to_config(scaling_factor=0.18215)
    torch.testing.assert_close(normalize_latents(vae, latents), latents * 0.18215)
    vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    torch.testing.assert_close(normalize_latents(vae, latents), (latents - 0.1159) * 0.3611)
    mean, std = [0.1, -0.2, 0.3, -0.4], [1.5, 0.5, 2.0, 3.0]
    vae.register_to_config(
        scaling_factor=0.5, shift_factor=None, latents_mean=mean, latents_std=std
    )
    expected = (latents - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5
    expected = expected / torch.tensor(std).view(1, 4, 1, 1)
    torch.testing.assert_close(normalize_latents(vae, latents), expected)


def test_encode_images_returns_the_autoencoders_posterior(vae, images):
    posterior = vae.encode(images).latent_dist
    mean = encode_images(vae, images, sample_posterior=False)
    assert mean.shape == (4, 4, 4, 4)
    torch.testing.assert_close(mean, posterior.mean, rtol=0, atol=0)
    sample = encode_images(vae, images, torch.Generator().manual_seed(5))
    expected = posterior.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample, expected, rtol=0, atol=0)


def test_encode_images_alone_or_in_a_batch(vae, images):
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    batch = encode_images(vae, images, generators)
    for i in range(4):
        alone = encode_images(vae, images[i : i + 1], torch.Generator().manual_seed(i))
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=0, atol=1e-4)


def test_encode_images_without_a_posterior_returns_the_encoders_latents():
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert downsampling_factor(vae) == 4
    latents = encode_images(vae, images)
    torch.testing.assert_close(latents, vae.encode(images).latents, rtol=0, atol=0)
    assert decode_latents(vae, latents).shape == images.shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16), "3 channels and the autoencoder takes 1"),
        ((1, 1, 18, 16), "multiples of its downsampling factor 4"),
        ((1, 16, 16), "float tensor"),
    ],
)
def test_encode_images_refuses_images_that_do_not_fit(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        encode_images(vae, torch.zeros(shape))


def test_half_precision_autoencoders_take_float32_images(images):
    vae = make_autoencoder().to(torch.bfloat16)
    latents = encode_images(vae, images, sample_posterior=False)
    assert latents.dtype == torch.bfloat16
    assert decode_latents(vae, latents.float()).dtype == torch.bfloat16


def test_posteriors_are_on_the_denoisers_scale(vae, images):
    vae.register_to_config(
        scaling_factor=0.5,
        shift_factor=0.1,
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 0.5, 2.0, 3.0],
    )
    with torch.no_grad():
        posteriors = encode_posteriors(vae, images)
        mean = encode_images(vae, images, sample_posterior=False)
        sample = encode_images(vae, images, torch.Generator().manual_seed(7))
    torch.testing.assert_close(posteriors.mean, mean)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(posteriors.sample(noise), sample, rtol=0, atol=1e-5)
    assert torch.equal(posteriors.sample(torch.zeros_like(noise)), posteriors.mean)
    torch.testing.assert_close(posteriors.var, posteriors.std**2)


def test_an_autoencoder_without_a_posterior_has_no_deviation(images):
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    vae.register_to_config(scaling_factor=0.5)
    with torch.no_grad():
        posteriors = encode_posteriors(vae, images)
        torch.testing.assert_close(posteriors.mean, encode_images(vae, images))
    assert posteriors.std.shape == posteriors.mean.shape
    assert not posteriors.std.any()


def test_posteriors_of_half_precision_are_float32(images):
    with torch.no_grad():
        posteriors = encode_posteriors(make_autoencoder().to(torch.bfloat16), images)
    assert posteriors.mean.dtype == posteriors.std.dtype == torch.float32
