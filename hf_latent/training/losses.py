"""The losses of both trainings, and the timesteps that the denoiser trains on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_latent.evaluation.features.networks import FeatureNetwork
from hf_latent.evaluation.measures.reconstruction import BACKGROUNDS
from hf_latent.evaluation.pictures import composite
from hf_latent.pipeline.add_noise import NoisedLatents, is_flow
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.equivariance import Transform
from hf_latent.training.start.autoencoder import Reconstruction

TimestepSampling = Literal["logit_normal", "uniform"]


def autoencoder_losses(
    config: AutoencoderConfig,
    output: Reconstruction,
    images: torch.Tensor,
    transform: Transform | None,
    network: FeatureNetwork | None,
    is_measured: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of an autoencoder, without the adversarial one.

    Args:
        config: has the weights.
        output: of the forward pass.
        images: `(B, C, H, W)` float in [-1, 1].
        transform: that of the forward pass.
        network: measures the perceptual distance; None only if its weight is 0.
        is_measured: as of `as_seen`.

    Returns:
        Two scalars. The fidelity: the error of the reconstructions and the weighted perceptual
        distance. The loss: the fidelity, the weighted KL, and with a transform the weighted error
        of the images that were decoded from transformed latents.
    """
    kind = config.reconstruction_loss
    fidelity = reconstruction_loss(output.images, images, kind, is_measured)
    if network is not None and config.perceptual_weight:
        distance = perceptual_loss(network, output.images, images)
        fidelity = fidelity + config.perceptual_weight * distance
    loss = fidelity + config.kl_weight * kl_per_latent_value(output.mean, output.logvar)
    if transform is not None and output.transformed is not None:
        target = transform(images, images.shape[-1] // output.mean.shape[-1])
        error = reconstruction_loss(output.transformed, target, kind, is_measured)
        loss = loss + config.equivariance_weight * error
    return fidelity, loss


def reconstruction_loss(
    reconstructions: torch.Tensor,
    images: torch.Tensor,
    kind: Literal["l2", "l1"] = "l2",
    is_measured: bool = False,
) -> torch.Tensor:
    """Return the mean absolute (L1) or mean squared (L2) error.

    RGBA images are compared as they are seen, see `as_seen`.

    Args:
        reconstructions: `(B, C, H, W)` float.
        images: `(B, C, H, W)` float in [-1, 1].
        kind: L2 gives the higher PSNR.
        is_measured: as of `as_seen`.

    Returns:
        A scalar, in units of [-1, 1] or their square.
    """
    error = as_seen(reconstructions, is_measured) - as_seen(images, is_measured)
    return error.abs().mean() if kind == "l1" else error.square().mean()


def as_seen(images: torch.Tensor, is_measured: bool = False) -> torch.Tensor:
    """Composite RGBA images on white and on mid-grey; return all other images unchanged.

    The colour of a fully transparent pixel then has no effect.

    Args:
        images: `(B, C, H, W)` float in [-1, 1].
        is_measured: whether four channels are measurements, not RGBA.

    Returns:
        For RGBA `(B, 7, H, W)`: RGB on white, RGB on mid-grey, alpha.
    """
    if images.shape[1] != 4 or is_measured:
        return images
    unit = images / 2 + 0.5
    shown = [composite(unit, background) for background in BACKGROUNDS]
    return torch.cat([*shown, unit[:, 3:]], dim=1) * 2 - 1


def perceptual_loss(
    network: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    reconstructions: torch.Tensor,
    images: torch.Tensor,
) -> torch.Tensor:
    """Return the distance of two batches in the features of a frozen network.

    The squared difference of the features, averaged over positions and images and summed over
    channels and layers (Zhang et al. 2018, equation 1). The network normalises its features to unit
    length across channels; `lpips` also applies the paper's learned weights. Only `reconstructions`
    get a gradient.

    Args:
        network: maps images to features `(N, C_l, H_l, W_l)` of each layer l, N a multiple of B,
            see `evaluation/features/networks.py`.
        reconstructions: `(B, C, H, W)` float.
        images: `(B, C, H, W)` float in [-1, 1].

    Returns:
        A scalar, 0 for equal images.
    """
    with torch.no_grad():
        targets = network(images)
    distances = [
        (features - target).square().sum(1).mean()
        for features, target in zip(network(reconstructions), targets, strict=True)
    ]
    return torch.stack(distances).sum()


def discriminator_hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the loss of the discriminator (Lim and Ye 2017, equation 3).

    Args:
        real_logits: `(B, 1, h, w)` float, of images.
        fake_logits: `(B, 1, h, w)` float, of reconstructions.

    Returns:
        A scalar: 1 if all logits are 0; 0 if real ones are at least 1 and fake ones at most -1.
    """
    return 0.5 * ((1 - real_logits).relu().mean() + (1 + fake_logits).relu().mean())


def generator_hinge_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the adversarial loss of the autoencoder, a scalar (Lim and Ye 2017, equation 4).

    Args:
        fake_logits: `(B, 1, h, w)` float, of reconstructions.
    """
    return -fake_logits.mean()


def adaptive_weight(
    fidelity_gradient: torch.Tensor, adversarial_gradient: torch.Tensor, maximum: float = 1e4
) -> torch.Tensor:
    """Return the weight, a scalar, that gives both losses gradients of equal norm.

    `|grad fidelity| / (|grad adversarial| + 1e-4)` at the decoder's last layer, at most `maximum`
    (Esser et al. 2021, equation 7, with LDM's constants).

    Args:
        fidelity_gradient: gradient of the reconstruction and perceptual loss, any shape.
        adversarial_gradient: gradient of `generator_hinge_loss`, the same shape.
        maximum: the largest weight.
    """
    return (fidelity_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(max=maximum)


def kl_per_latent_value(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence of the posterior from a standard normal, in nats per latent value.

    `(mean^2 + var - 1 - log var) / 2` (Kingma and Welling 2014, appendix B), averaged over latent
    values, so that its weight does not depend on the image size. LDM sums the KL over latent values
    and the error over pixels: LDM's weight is ours times the compression ratio (image values per
    latent value).

    Args:
        mean: `(B, c, h, w)`, the posterior's mean.
        logvar: `(B, c, h, w)`, the posterior's log-variance.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def denoising_loss(
    model_output: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted mean squared error (Ho et al. 2020, equation 14, for any target).

    Args:
        model_output: `(B, c, h, w)` float.
        target: `(B, c, h, w)` float.
        weights: `(B,)` float.
    """
    return (weights * (model_output.float() - target.float()).square().mean((1, 2, 3))).mean()


def contrast(noised: NoisedLatents, weight: float) -> NoisedLatents:
    """Push each target away from that of another row (contrastive flow matching).

    Stoica et al. 2025, equation 6: `|v - u|^2 - weight |v - u'|^2`, where u' is another row's
    target. Completing the square gives `(1 - weight) |v - (u - weight u') / (1 - weight)|^2` plus
    what does not depend on v.

    Args:
        noised: a batch; each row's u' is the target of the row before.
        weight: from 0 (plain flow matching) to below 1.
    """
    others = noised.target.roll(1, dims=0)
    target = (noised.target - weight * others) / (1 - weight)
    return replace(noised, target=target, weights=noised.weights * (1 - weight))


def normal_to_uniform(normal: torch.Tensor) -> torch.Tensor:
    """Map standard normal values to uniform ones in [0, 1], by the normal distribution function."""
    return 0.5 * torch.erfc(normal * -math.sqrt(0.5))


def choose_timesteps(
    scheduler: SchedulerMixin,
    normal: torch.Tensor,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    sampling: TimestepSampling | None = None,
) -> torch.Tensor:
    """Turn standard normal values into the timesteps of a training batch.

    For flow, sigma is logit-normal (Esser et al. 2024, section 3.1), or uniform as in rectified
    flow (Liu et al. 2023, equation 1). For other objectives, the discrete timesteps are uniform.

    Args:
        scheduler: determines the objective.
        normal: `(B,)` float32, a standard normal value for each timestep.
        logit_mean: mean of sigma's logit; a larger mean gives more noise.
        logit_std: standard deviation of sigma's logit.
        sampling: None means logit_normal for flow, uniform otherwise.

    Returns:
        `(B,)`: float32 in [0, num_train_timesteps] for flow, otherwise int64.

    Raises:
        ValueError: if discrete timesteps are to be logit_normal.
    """
    num_train_timesteps = scheduler.config.num_train_timesteps
    if not is_flow(scheduler):
        if sampling == "logit_normal":
            raise ValueError("logit_normal timesteps are defined for the flow objective only")
        timesteps = (normal_to_uniform(normal) * num_train_timesteps).long()
        return timesteps.clamp(max=num_train_timesteps - 1)
    if sampling == "uniform":
        return normal_to_uniform(normal) * num_train_timesteps
    return torch.sigmoid(logit_mean + logit_std * normal) * num_train_timesteps
