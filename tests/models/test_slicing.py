import pytest
import torch

from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.models.frozen import freeze
from hf_latent.models.slicing import slice_if_needed
from hf_latent.training.latents.posteriors import encode_batches
from tests.autoencoder_kinds import make_kind
from tests.conftest import count_calls, make_autoencoder


def limit_memory(vae, largest: int = 1) -> None:
    """Let encoder and decoder run out of memory for batches that are larger."""

    def check(module, inputs) -> None:
        if len(inputs[0]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    vae.encoder.register_forward_pre_hook(check)
    vae.decoder.register_forward_pre_hook(check)


def test_a_batch_that_does_not_fit_is_decoded_image_by_image(pipeline, caplog):
    arguments = {"num_images": 5, "seed": 3, "batch_size": 2, "num_inference_steps": 2}
    expected = sample_images(pipeline, [2, 0], **arguments)
    limit_memory(pipeline.vae)
    sizes = count_calls(pipeline.vae.decoder)
    denoised = count_calls(pipeline.unet)
    found = sample_images(pipeline, [2, 0], **arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert sizes == [1] * 5
    assert denoised == [4, 4] * 3 + [2, 2], "only the first batch is denoised again"
    assert [x.levelname for x in caplog.records] == ["WARNING"]


def test_reconstructions_and_encoded_batches_need_as_little_memory(vae, images):
    vae = freeze(vae)
    pair = reconstruct(vae, images), *encode_batches(vae, [images], True, torch.float32)
    limit_memory(vae)
    generator = torch.Generator().manual_seed(0)
    (encoded,) = encode_batches(vae, [images], True, torch.float32)
    torch.testing.assert_close(reconstruct(vae, images), pair[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(encoded, pair[1], rtol=0, atol=1e-4)
    sampled = reconstruct(vae, images, generator, sample_posterior=True)
    expected = reconstruct(
        make_autoencoder(), images, torch.Generator().manual_seed(0), sample_posterior=True
    )
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-4)


def test_an_image_that_does_not_fit_is_an_error(vae, images):
    limit_memory(vae, largest=0)
    with pytest.raises(torch.OutOfMemoryError):
        slice_if_needed(vae, lambda: vae.encode(images))


def test_an_autoencoder_that_cannot_slice_says_that_memory_is_too_small():
    vae = make_kind("vq")
    images = torch.zeros(2, 3, 32, 32)
    limit_memory(vae)
    with pytest.raises(torch.OutOfMemoryError):
        slice_if_needed(vae, lambda: vae.encode(images))
