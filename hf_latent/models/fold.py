"""Fold the latent scale into an autoencoder's weights."""

import copy
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hf_latent.pipeline.encode import LatentPosteriors

# Both have a mean and a variance, `(B, c, h, w)` each.
Posterior: TypeAlias = LatentPosteriors | DiagonalGaussianDistribution
MINIMUM_DEVIATION = 1e-3
# diffusers ignores private configuration entries, and keeps them when a model is saved again.
FOLDED_MEAN, FOLDED_STD = "_folded_latents_mean", "_folded_latents_std"


@dataclass(frozen=True)
class LatentStatistics:
    """Per-channel statistics of posterior samples.

    Attributes:
        mean: `(c,)` float64.
        std: `(c,)` float64, at least 1e-3.
    """

    mean: torch.Tensor
    std: torch.Tensor


def sum_latents(posterior: Posterior) -> torch.Tensor:
    """Sum the values that `measure_latents` needs; the sums of batches can be added.

    Args:
        posterior: of a batch of images, `(B, c, h, w)`.

    Returns:
        `(4, c)` float64 on the CPU: per channel the number of values, and the sums of posterior
        means, of their squares, and of posterior variances.
    """
    mean, variance = (
        x.cpu().double().transpose(0, 1).flatten(1) for x in (posterior.mean, posterior.var)
    )
    return torch.stack([x.sum(1) for x in (torch.ones_like(mean), mean, mean.square(), variance)])


def measure_latents(sums: torch.Tensor) -> LatentStatistics:
    """Measure the mean and standard deviation of posterior samples, without drawing any.

    By the law of total variance, a sample's variance is the variance of the posterior's mean plus
    the mean of its variance.

    Args:
        sums: `(4, c)` float64, of `sum_latents` over the training set.

    Returns:
        The statistics per channel; the deviation is at least 1e-3, because the scale of a dead
        channel would otherwise be unbounded.
    """
    mean, square, variance = sums[1:] / sums[0]
    variance = square - mean.square() + variance
    return LatentStatistics(mean, variance.clamp(min=0).sqrt().clamp(min=MINIMUM_DEVIATION))


@torch.no_grad()
def _apply_scale(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> AutoencoderKL:
    """Return a copy that encodes to `(latents - mean) / std`."""
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ValueError("this autoencoder has no quant_conv to fold a latent scale into")
    vae = copy.deepcopy(vae)
    # On the CPU, because some devices lack float64.
    weight, bias = vae.quant_conv.weight.cpu().double(), vae.quant_conv.bias.cpu().double()
    mean, std = mean.to(weight), std.to(weight)
    c = len(mean)
    weight[:c] /= std.view(-1, 1, 1, 1)
    bias[:c] = (bias[:c] - mean) / std
    bias[c:] -= 2 * std.log()
    vae.quant_conv.weight.copy_(weight)
    vae.quant_conv.bias.copy_(bias)
    weight = vae.post_quant_conv.weight.cpu().double()
    bias = vae.post_quant_conv.bias.cpu().double()
    bias += weight[:, :, 0, 0] @ mean
    weight *= std.view(1, -1, 1, 1)
    vae.post_quant_conv.weight.copy_(weight)
    vae.post_quant_conv.bias.copy_(bias)
    return vae


def fold_latent_scale(vae: AutoencoderKL, statistics: LatentStatistics) -> AutoencoderKL:
    """Fold measured latent statistics into `quant_conv` and `post_quant_conv`.

    Both are 1x1 convolutions, so this is an affine change of their weights: the mean rows are
    shifted and scaled, the log-variance rows are shifted by `-2 log std`, and `post_quant_conv`
    gets the inverse. It is exact except where the log-variance meets its clamp [-30, 20]. The
    configuration keeps the statistics, for `unfold_latent_scale`.

    Args:
        vae: a trained autoencoder, not folded; it is not changed.
        statistics: of its posterior samples.

    Returns:
        A copy with unit-variance latents and `scaling_factor = 1`.

    Raises:
        ValueError: if it is folded already or has no quant_conv.
    """
    if FOLDED_MEAN in vae.config:
        raise ValueError("this autoencoder's latent scale is already folded: unfold it first")
    folded = _apply_scale(vae, statistics.mean, statistics.std)
    folded.register_to_config(
        scaling_factor=1.0,
        **{FOLDED_MEAN: statistics.mean.tolist(), FOLDED_STD: statistics.std.tolist()},
    )
    return folded


def unfold_latent_scale(vae: AutoencoderKL) -> AutoencoderKL:
    """Undo `fold_latent_scale`, for fine-tuning.

    Args:
        vae: a folded autoencoder; it is not changed.

    Returns:
        A copy with the latents from before the fold.

    Raises:
        ValueError: if it is not folded.
    """
    if FOLDED_MEAN not in vae.config:
        raise ValueError("this autoencoder's latent scale is not folded")
    mean = torch.tensor(vae.config[FOLDED_MEAN], dtype=torch.float64)
    std = torch.tensor(vae.config[FOLDED_STD], dtype=torch.float64)
    unfolded = _apply_scale(vae, -mean / std, 1 / std)
    config = {k: v for k, v in unfolded.config.items() if k not in (FOLDED_MEAN, FOLDED_STD)}
    unfolded._internal_dict = type(unfolded.config)(config)
    return unfolded


def _with_quant_convs(vae: AutoencoderKL) -> AutoencoderKL:
    """Return a copy with both 1x1 convolutions; missing ones become the identity."""
    c = vae.config.latent_channels
    config = {**vae.config, "use_quant_conv": True, "use_post_quant_conv": True}
    copied = AutoencoderKL.from_config(config).to(vae.device, vae.dtype)
    identity = {
        "quant_conv.weight": torch.eye(2 * c)[:, :, None, None],
        "quant_conv.bias": torch.zeros(2 * c),
        "post_quant_conv.weight": torch.eye(c)[:, :, None, None],
        "post_quant_conv.bias": torch.zeros(c),
    }
    copied.load_state_dict(identity | vae.state_dict())
    return copied


def prepare_for_training(vae: AutoencoderKL) -> AutoencoderKL:
    """Prepare any pretrained autoencoder to be trained further and folded again.

    A folded scale is unfolded and a foreign one (`scaling_factor` and its like) is reset, because
    the scale is measured again after training. Missing `quant_conv`s are added as the identity.

    Args:
        vae: any AutoencoderKL; it is not changed.

    Returns:
        A copy that encodes and decodes as before, on the scale of its own latents.
    """
    if vae.quant_conv is None or vae.post_quant_conv is None:
        vae = _with_quant_convs(vae)
    vae = unfold_latent_scale(vae) if FOLDED_MEAN in vae.config else copy.deepcopy(vae)
    vae.register_to_config(
        scaling_factor=1.0, shift_factor=None, latents_mean=None, latents_std=None
    )
    return vae
