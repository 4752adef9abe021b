import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hf_latent.models.presets import create_scheduler
from hf_latent.training.losses import (
    denoising_loss,
    draw_timesteps,
    kl_per_latent_value,
    reconstruction_loss,
)


def test_reconstruction_loss_is_the_mean_absolute_error():
    a, b = torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(reconstruction_loss(a, b), torch.nn.functional.l1_loss(a, b))


def test_kl_equals_diffusers_and_torch_per_value():
    parameters = torch.randn(5, 8, 6, 7)
    posterior = DiagonalGaussianDistribution(parameters)
    kl = kl_per_latent_value(posterior.mean, posterior.logvar)
    torch.testing.assert_close(kl, posterior.kl().mean() / (4 * 6 * 7))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(posterior.mean, posterior.std), normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl, expected.mean())


def test_kl_does_not_depend_on_the_image_size():
    parameters = torch.randn(2, 8, 4, 4)
    small, large = (
        kl_per_latent_value(p.mean, p.logvar)
        for p in map(DiagonalGaussianDistribution, (parameters, parameters.repeat(1, 1, 3, 5)))
    )
    torch.testing.assert_close(small, large)


def test_denoising_loss_weighs_images():
    output, target = torch.randn(2, 3, 4, 5, 5)
    loss = denoising_loss(output, target, torch.ones(3))
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(output, target))
    loss = denoising_loss(output, target, torch.tensor([0.0, 3.0, 0.0]))
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(output[1], target[1]))


def test_flow_timesteps_are_logit_normal():
    generator = torch.Generator().manual_seed(0)
    timesteps = draw_timesteps(create_scheduler("flow"), 20_000, generator, 0.5, 1.2)
    assert timesteps.dtype == torch.float32
    logits = torch.logit(timesteps / 1000)
    assert abs(logits.mean() - 0.5) < 0.03
    assert abs(logits.std() - 1.2) < 0.03


def test_discrete_timesteps_are_uniform():
    generator = torch.Generator().manual_seed(0)
    timesteps = draw_timesteps(create_scheduler("epsilon"), 20_000, generator)
    assert timesteps.dtype == torch.int64
    assert (timesteps.min(), timesteps.max()) == (0, 999)
    counts = torch.histc(timesteps.float(), bins=10, min=0, max=1000)
    assert (counts - 2000).abs().max() < 200


def test_draws_are_reproducible():
    for objective in ("flow", "epsilon"):
        a, b = (
            draw_timesteps(create_scheduler(objective), 9, torch.Generator().manual_seed(4))
            for _ in range(2)
        )
        assert torch.equal(a, b)
