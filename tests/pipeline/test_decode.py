import pytest
import torch

from hf_latent.pipeline.decode import decode_latents


def test_decode_latents_undoes_the_scale_and_decodes(vae):
    latents = torch.randn(2, 4, 4, 4)
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    expected = vae.decode(latents / 0.5 + 0.25).sample
    images = decode_latents(vae, latents)
    assert images.shape == (2, 1, 16, 16)
    torch.testing.assert_close(images, expected, rtol=0, atol=0)


def test_decode_latents_refuses_other_channels(vae):
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\)"):
        decode_latents(vae, torch.zeros(1, 3, 4, 4))
