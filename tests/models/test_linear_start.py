import pytest
import torch
from torch.nn import functional as F

from hf_latent.models import linear_start
from hf_latent.models.linear_start import principal_components, start_from_components
from hf_latent.models.presets import create_autoencoder

COUNT, SIZE = 24, 32


def coloured_images(seed: int = 0) -> torch.Tensor:
    """Smooth clouds of random colours and contrasts, `(24, 3, 32, 32)`."""
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.randn(COUNT, 3, 10, 10, generator=generator)
    clouds = F.interpolate(clouds, SIZE, mode="bicubic", align_corners=False)
    contrast = torch.rand(COUNT, 1, 1, 1, generator=generator) * 0.3 + 0.1
    brightness = torch.rand(COUNT, 3, 1, 1, generator=generator) - 0.5
    return (clouds * contrast + brightness).clamp(-1, 1)


def started(images: torch.Tensor, kl_weight: float = 1e-3, **changes):
    torch.manual_seed(0)
    changes = {"latent_channels": 4} | changes
    vae = create_autoencoder("tiny", images.shape[1], SIZE, **changes).eval()
    start_from_components(vae, images, kl_weight)
    return vae


def patch_rows(images: torch.Tensor, side: int) -> torch.Tensor:
    """One row for each patch, `(n, C * side * side)` float64."""
    return F.unfold(images, side, stride=side).transpose(1, 2).flatten(0, 1).double()


def best_linear_code(images: torch.Tensor, side: int, count: int) -> torch.Tensor:
    """Images rebuilt from the leading right singular vectors of their patches."""
    rows = patch_rows(images, side)
    mean = rows.mean(0)
    directions = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:count]
    rebuilt = (rows - mean) @ directions.T @ directions + mean
    rebuilt = rebuilt.unflatten(0, (len(images), -1)).transpose(1, 2).float()
    return F.fold(rebuilt, images.shape[-2:], side, stride=side)


def test_components_are_those_of_a_singular_value_decomposition():
    images = coloured_images()
    components, variances = principal_components(images, 4, 5)
    rows = patch_rows(images, 4)
    svd = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    expected = (svd.U * svd.S)[:, :5].unflatten(0, (COUNT, 8, 8)).permute(0, 3, 1, 2).float()
    signs = (expected * components).sum((0, 2, 3), keepdim=True).sign()
    torch.testing.assert_close(components, expected * signs, rtol=0, atol=2e-3)
    torch.testing.assert_close(variances, (svd.S[:5] ** 2 / len(rows)).float(), rtol=1e-3, atol=0)


def test_a_patch_has_no_more_components_than_values():
    components, variances = principal_components(coloured_images()[:, :1], 2, 9)
    assert (components.shape, len(variances)) == ((COUNT, 4, 16, 16), 4)


@pytest.mark.parametrize(("side", "widths"), [(4, (16, 32, 64)), (8, (16, 32, 64, 64))])
def test_the_start_is_nearly_the_best_linear_code(side, widths):
    images = coloured_images()
    vae = started(images, block_out_channels=widths, mid_block_add_attention=True)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        rebuilt = vae.decode(latents).sample
    components, _ = principal_components(images, side, 4)
    for mine, best in zip(latents.unbind(1), components.unbind(1), strict=True):
        correlation = torch.corrcoef(torch.stack([mine.flatten(), best.flatten()]))[0, 1]
        assert correlation.abs() > 0.97
        torch.testing.assert_close(mine.std(), torch.tensor(1.0), rtol=0.05, atol=0)
    error = (rebuilt - images).square().mean()
    best = (best_linear_code(images, side, 4) - images).square().mean()
    assert error < 1.3 * best


# The larger the constant is, the more linear is the start.
@pytest.mark.parametrize(("constant", "tolerance"), [(12.0, 0.02), (linear_start.CONSTANT, 0.04)])
def test_brightness_and_colour_of_a_whole_image_pass_the_norms(constant, tolerance, monkeypatch):
    monkeypatch.setattr(linear_start, "CONSTANT", constant)
    images = coloured_images()
    vae = started(images)
    shift = torch.tensor([0.2, -0.1, 0.1]).view(3, 1, 1)
    with torch.no_grad():
        plain, shifted = (
            vae.decode(vae.encode(x).latent_dist.mean).sample for x in (images, images + shift)
        )
    moved = (shifted - plain).mean((0, 2, 3))
    torch.testing.assert_close(moved, shift.flatten(), rtol=0, atol=tolerance)


def test_the_posterior_has_the_variance_of_the_smallest_loss():
    images, kl_weight = coloured_images(), 0.01
    vae = started(images, kl_weight)
    found = vae.encode(images).latent_dist.logvar.mean((0, 2, 3)).exp()
    _, variances = principal_components(images, 4, 4)
    v = torch.logspace(-5, 0, 20_001).view(-1, 1)
    # A component of unit variance is decoded with the deviation that it had in the patch.
    loss = v * variances / (3 * 4 * 4) + kl_weight * 0.5 * (v - 1 - v.log()) / 4
    torch.testing.assert_close(found, v[loss.argmin(0), 0], rtol=2e-3, atol=0)


@pytest.mark.parametrize("kl_weight", [0.0, 1e-3])
@pytest.mark.parametrize("images", [torch.zeros(2, 1, SIZE, SIZE), coloured_images()[:1]])
def test_any_images_give_finite_weights(images, kl_weight):
    vae = started(images, kl_weight, block_out_channels=(8, 8, 8), norm_num_groups=8)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    with torch.no_grad():
        assert vae.decode(vae.encode(images).latent_dist.mode()).sample.isfinite().all()


@pytest.mark.parametrize(("constant", "largest"), [(12.0, 1e-3), (linear_start.CONSTANT, 5e-3)])
def test_more_latents_than_a_patch_has_values(constant, largest, monkeypatch):
    monkeypatch.setattr(linear_start, "CONSTANT", constant)
    images = coloured_images()[:, :1]
    vae = started(images, block_out_channels=(8, 16), latent_channels=6)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        rebuilt = vae.decode(posterior.mean).sample
    assert posterior.mean[:, 4:].abs().max() == 0 and posterior.logvar[:, 4:].abs().max() == 0
    assert (rebuilt - images).square().mean() < largest


def test_every_weight_gets_a_gradient_after_one_step():
    images = coloured_images()
    vae = started(images)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-3)
    for _ in range(2):
        posterior = vae.encode(images).latent_dist
        noisy = posterior.mean + posterior.std * 0.1
        (vae.decode(noisy).sample - images).square().mean().backward()
        gradients = {name: x.grad.clone() for name, x in vae.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
