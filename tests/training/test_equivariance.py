import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate, mse_loss

from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.equivariance import Transform, choose_transform
from hf_latent.training.start.autoencoder import TrainableAutoencoder, start_autoencoder
from tests.conftest import make_autoencoder
from tests.training.conftest import first_batch


def test_a_transform_turns_and_resizes_as_pillow_does():
    image = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    found = Transform(1, 0.5)(image)[0, 0].numpy()
    small = Image.fromarray(image[0, 0].numpy()).resize((12, 8), Image.Resampling.BILINEAR)
    expected = np.asarray(small.transpose(Image.Transpose.ROTATE_90))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("turns", range(4))
def test_images_get_the_size_that_the_transformed_latents_decode_to(turns, scale):
    vae = make_autoencoder()
    images = torch.randn(1, 1, 12, 20)
    transform = Transform(turns, scale)
    *_, decoded = TrainableAutoencoder(vae)(images, torch.zeros(1, 4, 3, 5), transform)
    assert transform(images, factor=4).shape == decoded.shape


def test_the_latents_are_decoded_transformed(images):
    vae, transform = make_autoencoder(), Transform(3, 0.5)
    noise = torch.randn(4, 4, 4, 4)
    found = TrainableAutoencoder(vae)(images, noise, transform)
    latents = found.mean + (0.5 * found.logvar).exp() * noise
    halves = interpolate(latents, (2, 2), mode="bilinear", antialias=True)
    turned = halves.rot90(3, (2, 3))
    torch.testing.assert_close(found.transformed, vae.decode(turned).sample)
    torch.testing.assert_close(found.images, vae.decode(latents).sample)


def test_every_transform_is_drawn_but_the_one_that_changes_nothing():
    drawn = {choose_transform(0, step, 0) for step in range(300)}
    assert len(drawn) == 15 and Transform(0, 1.0) not in drawn
    assert choose_transform(0, 7, 1) == choose_transform(0, 7, 1) != choose_transform(1, 7, 1)


def test_the_training_adds_the_weighted_error(autoencoder_config, tmp_path):
    config = autoencoder_config(
        initialization="random",
        equivariance_weight=0.7,
        kl_weight=0.0,
        max_train_steps=1,
        checkpointing_steps=1,
        max_grad_norm=1e9,
    )
    summary = train_autoencoder(config)
    vae = start_autoencoder(config, (1, 32, 32))
    images, noise = first_batch(config)
    transform = choose_transform(0, 0, 0)
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise
    loss = mse_loss(vae.decode(latents).sample, images)
    transformed = vae.decode(transform(latents)).sample
    loss = loss + 0.7 * mse_loss(transformed, transform(images, factor=4))
    loss.backward()
    assert summary.train_loss == pytest.approx(loss.item(), rel=1e-4)
    # Adam's first moment after one step is a tenth of the gradient.
    moments = load_file(tmp_path / "autoencoder" / "checkpoint-1" / "vae_optimizer.safetensors")
    for name, parameter in vae.named_parameters():
        found = moments[f"{name}.exp_avg"] * 10
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
