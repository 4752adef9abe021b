import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline.add_noise import NoisedLatents
from hf_latent.training.losses import (
    adaptive_weight,
    as_seen,
    choose_timesteps,
    contrast,
    denoising_loss,
    discriminator_hinge_loss,
    generator_hinge_loss,
    kl_per_latent_value,
    perceptual_loss,
    reconstruction_loss,
)


def test_reconstruction_loss_is_the_mean_absolute_error():
    a, b = torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(reconstruction_loss(a, b, "l1"), torch.nn.functional.l1_loss(a, b))


def test_l2_is_the_mean_squared_error():
    a, b = torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(reconstruction_loss(a, b, "l2"), torch.nn.functional.mse_loss(a, b))


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6])
def test_images_without_alpha_are_compared_unchanged(channels):
    images = torch.randn(2, channels, 4, 4)
    assert torch.equal(as_seen(images), images)


def test_rgba_is_composited_on_white_and_grey_with_alpha_apart():
    # Half transparent red; red, green, blue and alpha in [-1, 1].
    red = torch.tensor([1.0, -1.0, -1.0, 0.0]).view(1, 4, 1, 1)
    white, grey, alpha = [1.0, 0.0, 0.0], [0.5, -0.5, -0.5], [0.0]
    torch.testing.assert_close(as_seen(red).flatten(), torch.tensor(white + grey + alpha))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_hidden_colour_has_no_effect_and_alpha_has_one(kind):
    images = torch.rand(2, 4, 6, 6) * 1.8 - 0.9
    images[:, 3, :3] = -1  # the upper half is transparent
    other = images.clone()
    other[:, :3, :3] = torch.rand(2, 3, 3, 6) * 2 - 1
    assert reconstruction_loss(other, images, kind) == 0
    lighter = images.clone()
    lighter[:, 3] += 0.1
    assert reconstruction_loss(lighter, images, kind) > 1e-3

    reconstructions = images + 0.05
    reconstructions[:, 3, :3] = -1
    reconstructions.requires_grad_()
    reconstruction_loss(reconstructions, images, kind).backward()
    assert (reconstructions.grad[:, :3, :3] == 0).all()
    # L1's signs on white and on grey may cancel.
    share = (reconstructions.grad[:, :, 3:] != 0).float().mean()
    assert share > (0.5 if kind == "l1" else 0.99)


def test_perceptual_loss_sums_layers_and_averages_positions_and_images():
    first = torch.nn.Conv2d(3, 5, 3, stride=2)
    second = torch.nn.Conv2d(5, 2, 1)

    def network(images):
        hidden = first(images)
        return [hidden, second(hidden.tanh())]

    images, reconstructions = (x.requires_grad_() for x in torch.randn(2, 4, 3, 9, 7))
    loss = perceptual_loss(network, reconstructions, images)
    expected = 0.0
    for a, b in zip(network(images), network(reconstructions), strict=True):
        for image in range(4):
            for y in range(a.shape[2]):
                for x in range(a.shape[3]):
                    difference = b[image, :, y, x] - a[image, :, y, x]
                    expected += difference @ difference / (4 * a.shape[2] * a.shape[3])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert images.grad is None
    assert (reconstructions.grad.abs().amax((1, 2, 3)) > 1e-4).all()
    assert perceptual_loss(network, images, images) == 0


def test_hinge_losses():
    real, fake = (torch.tensor(x).view(-1, 1, 1, 2) for x in ([2.0, 0.5, -1, 0], [-2.0, 0.5, 3, 0]))
    # 1 - real, where above 0: 0, 0.5, 2, 1; 1 + fake, where above 0: 0, 1.5, 4, 1
    assert discriminator_hinge_loss(real, fake) == pytest.approx(0.5 * (3.5 / 4 + 6.5 / 4))
    zero = torch.zeros(3, 1, 2, 2)
    assert discriminator_hinge_loss(zero, zero) == 1
    assert discriminator_hinge_loss(zero + 1, zero - 1) == 0
    assert generator_hinge_loss(fake) == pytest.approx(-1.5 / 4)


def test_adaptive_weight_is_the_clamped_ratio_of_the_norms():
    fidelity, adversarial = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert adaptive_weight(fidelity, adversarial).item() == pytest.approx(5 / 2.0001)
    assert adaptive_weight(fidelity, adversarial, maximum=1.5) == 1.5
    assert adaptive_weight(fidelity, adversarial * 0) == 1e4
    assert adaptive_weight(fidelity * 1e-3, adversarial * 0).item() == pytest.approx(50)
    assert adaptive_weight(fidelity * 0, adversarial) == 0


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


NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0))


def test_flow_timesteps_are_logit_normal():
    timesteps = choose_timesteps(create_scheduler("flow"), NORMAL, 0.5, 1.2)
    assert timesteps.dtype == torch.float32
    torch.testing.assert_close(torch.logit(timesteps / 1000), 0.5 + 1.2 * NORMAL)


@pytest.mark.parametrize(("objective", "dtype"), [("flow", torch.float32), ("sample", torch.int64)])
def test_timesteps_can_be_uniform(objective, dtype):
    timesteps = choose_timesteps(create_scheduler(objective), NORMAL, sampling="uniform")
    assert timesteps.dtype == dtype
    assert 0 <= timesteps.min() < 1
    assert 999 <= timesteps.max() <= 1000
    counts = torch.histc(timesteps.float(), bins=50, min=0, max=1000)
    assert ((counts - 400).square() / 400).sum() < 86, "chi squared: 49 values, 1 in 1,000"


def test_discrete_timesteps_are_uniform_by_default_and_all_exist():
    scheduler = create_scheduler("epsilon")
    extreme = torch.tensor([-40.0, -5.0, 0.0, 5.0, 40.0])
    assert choose_timesteps(scheduler, extreme).tolist() == [0, 0, 500, 999, 999]
    each = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).float()
    assert choose_timesteps(scheduler, each).tolist() == list(range(1000))


def test_logit_normal_is_refused_for_discrete_timesteps():
    with pytest.raises(ValueError, match="for the flow objective only"):
        choose_timesteps(create_scheduler("sample"), NORMAL, sampling="logit_normal")


@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_contrastive_targets_have_the_gradient_of_the_papers_loss(weight):
    latents, target, output = torch.randn(3, 4, 2, 3, 3)
    weights, output = torch.rand(4), output.requires_grad_()
    noised = contrast(NoisedLatents(latents, torch.rand(4), target, weights), weight)
    denoising_loss(output, noised.target, noised.weights).backward()
    found, output.grad = output.grad, None
    others = target[[3, 0, 1, 2]]
    squares = (output - target).square() - weight * (output - others).square()
    (weights * squares.mean((1, 2, 3))).mean().backward()
    torch.testing.assert_close(found, output.grad)
    assert torch.equal(noised.noisy_latents, latents)
