"""An autoencoder that overflows in float16 and has `force_upcast`."""

import pytest
import torch

from hf_latent.models.frozen import hash_weights


@pytest.fixture
def overflowing(pipeline):
    """A float16 autoencoder whose activations exceed 65,504 at both ends and cancel again."""
    with torch.no_grad():
        for convolution in (pipeline.vae.encoder.conv_in, pipeline.vae.decoder.conv_in):
            convolution.weight.mul_(1.5e5)
    pipeline.vae.half()
    return pipeline


@pytest.mark.parametrize("force_upcast", [True, False])
def test_force_upcast_prevents_overflow_and_keeps_the_weights(overflowing, force_upcast):
    overflowing.vae.register_to_config(force_upcast=force_upcast)
    before = hash_weights(overflowing.vae)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = overflowing.encode_images(images, sample_posterior=False)
    decoded = overflowing.decode_latents(torch.ones(2, 4, 4, 4))
    assert latents.dtype == decoded.dtype == overflowing.vae.dtype == torch.float16
    assert hash_weights(overflowing.vae) == before
    for found in (latents, decoded):
        assert found.isfinite().all().item() == force_upcast


def test_upcast_results_equal_those_of_float32(overflowing):
    overflowing.vae.register_to_config(force_upcast=True)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    found = overflowing.decode_latents(latents)
    overflowing.vae.float()
    assert torch.equal(found, overflowing.decode_latents(latents).half())
