"""What the two trainings minimise, and the timesteps that the second draws."""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.training_utils import compute_density_for_timestep_sampling

from hf_latent.add_noise import is_flow


def reconstruction_loss(reconstructions: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute error (L1).

    Args:
        reconstructions: `(B, C, H, W)` float.
        images: `(B, C, H, W)` float in [-1, 1].

    Returns:
        A scalar, in units of [-1, 1].
    """
    return (reconstructions - images).abs().mean()


def kl_per_latent_value(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL divergence of the posterior from a standard normal, in nats per latent value.

    `(mean^2 + var - 1 - log var) / 2` (Kingma and Welling 2014, appendix B), averaged, so that its
    weight does not depend on the image's size. LDM sums over latent values and weighs that against
    an error summed over pixels: its weight is ours times the compression ratio (image values over
    latent values).

    Args:
        mean: `(B, c, h, w)`, the posterior's mean.
        logvar: `(B, c, h, w)`, its log-variance.

    Returns:
        A scalar in nats.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def denoising_loss(
    model_output: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean squared error (Ho et al. 2020, equation 14, for any target).

    Args:
        model_output: `(B, c, h, w)` float.
        target: `(B, c, h, w)` float.
        weights: `(B,)` float.

    Returns:
        A scalar.
    """
    return (weights * (model_output.float() - target.float()).square().mean((1, 2, 3))).mean()


def draw_timesteps(
    scheduler: SchedulerMixin,
    count: int,
    generator: torch.Generator,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
) -> torch.Tensor:
    """Draw the timesteps of a training batch.

    Flow: sigma is logit-normal (Esser et al. 2024, section 3.1). Otherwise uniform over the
    scheduler's discrete timesteps.

    Args:
        scheduler: says the objective.
        count: how many.
        generator: on the CPU.
        logit_mean: mean of sigma's logit; larger: noisier.
        logit_std: deviation of sigma's logit.

    Returns:
        `(count,)` on the CPU: float32 in [0, num_train_timesteps] for flow, else int64.
    """
    num_train_timesteps = scheduler.config.num_train_timesteps
    if is_flow(scheduler):
        sigmas = compute_density_for_timestep_sampling(
            "logit_normal", count, logit_mean, logit_std, generator=generator
        )
        return sigmas * num_train_timesteps
    return torch.randint(num_train_timesteps, (count,), generator=generator)
