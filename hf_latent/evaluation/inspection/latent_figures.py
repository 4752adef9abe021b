"""Figures of the latents: rate, scale, channels, and distance to a normal distribution."""

import math
from typing import Any

import torch

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.evaluation.inspection.frequencies import BandPower
from hf_latent.evaluation.inspection.pictures import NOISE_LEVELS, latent_noise_rows
from hf_latent.evaluation.measures.reconstruction import image_psnr
from hf_latent.models.fold import FOLDED_MEAN, FOLDED_STD
from hf_latent.models.load import Autoencoder
from hf_latent.models.presets import Compression
from hf_latent.pipeline.autoencoders import find_kind, latent_channels
from hf_latent.pipeline.encode import LatentPosteriors

# A channel is dead (inactive, Burda et al. 2016, section 5.2) if less than this share of its
# variance comes from the image rather than from the posterior's noise.
DEAD_SHARE = 0.01
KEPT_VALUES = 2048  # per channel and batch, for the distance to the normal distribution


class LatentMoments:
    """Sums latents by channel, in float64."""

    def __init__(self, channels: int):
        """Start without latents."""
        self.count = 0
        self._powers = torch.zeros(4, channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._of_means = torch.zeros(2, channels, dtype=torch.float64)
        self._kept: list[torch.Tensor] = []
        self._spectrum: BandPower | None = None

    def update(self, latents: torch.Tensor, means: torch.Tensor) -> None:
        """Add posterior samples and the posteriors' means, on the denoiser's scale.

        Both are `(B, c, h, w)` float.
        """
        self._spectrum = self._spectrum or BandPower(*latents.shape[2:])
        self._spectrum.update(latents)
        values, centres = (x.cpu().double().transpose(0, 1).flatten(1) for x in (latents, means))
        self.count += values.shape[1]
        self._powers += torch.stack([values.pow(k).sum(1) for k in (1, 2, 3, 4)])
        self._products += values @ values.T
        self._of_means += torch.stack([centres.sum(1), centres.square().sum(1)])
        self._kept.append(values[:, :: max(1, values.shape[1] // KEPT_VALUES)].clone())

    @property
    def std(self) -> torch.Tensor:
        """Deviation of each channel, `(c,)` float64."""
        mean, square = self._powers[:2] / self.count
        return (square - mean.square()).clamp(min=0).sqrt()

    def figures(self) -> dict[str, Any]:
        """Return moments, correlations, spectrum and dead channels.

        `latent_ks_distance` is `normal_distance` of each channel's values, after they are shifted
        and scaled to mean 0 and deviation 1.
        """
        std, n = self.std.clamp(min=1e-12), self.count
        mean, second, third, fourth = self._powers / n
        skewness = (third - 3 * mean * second + 2 * mean**3) / std**3
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        covariance = self._products / n - mean[:, None] * mean[None]
        of_means = self._of_means / n
        informative = (of_means[1] - of_means[0].square()) / std.square()
        dead = (informative < DEAD_SHARE) | (std < 1e-3 * std.max())
        kept = (torch.cat(self._kept, dim=1) - mean[:, None]) / std[:, None]
        assert self._spectrum is not None
        bands = self._spectrum.by_channel()
        return {
            "latent_mean": mean.tolist(),
            "latent_std": self.std.tolist(),
            "latent_skewness": skewness.tolist(),
            "latent_excess_kurtosis": (central / std**4 - 3).tolist(),
            "latent_ks_distance": [normal_distance(values) for values in kept],
            "latent_correlation": (covariance / (std[:, None] * std[None])).tolist(),
            "latent_informative_share": informative.tolist(),
            "dead_channels": dead.nonzero().flatten().tolist(),
            "latent_band_edges_cycles_per_value": self._spectrum.edges,
            "latent_band_share": (bands / bands.sum(1, keepdim=True).clamp(min=1e-30)).tolist(),
        }


def normal_distance(values: torch.Tensor) -> float:
    """Return the Kolmogorov-Smirnov distance of values `(n,)` to the standard normal.

    It is the largest difference between the two cumulative distributions.
    """
    ordered = values.sort().values
    expected = torch.special.ndtr(ordered)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return max((steps[1:] - expected).max().item(), (expected - steps[:-1]).max().item())


class PosteriorRate:
    """How many bits an autoencoder's posteriors carry, summed in float64.

    The scale of the latents, also one that is folded into the weights, is undone before the KL is
    computed.
    """

    def __init__(self, vae: Autoencoder):
        """Start without posteriors."""
        c = latent_channels(vae)
        zeros = torch.zeros(c, 1, 1, dtype=torch.float64)
        mean, std = (zeros + x for x in find_kind(vae).scale(vae, zeros))
        folded_mean, folded_std = (
            zeros.new_tensor(vae.config.get(name) or [neutral] * c)
            for name, neutral in ((FOLDED_MEAN, 0.0), (FOLDED_STD, 1.0))
        )
        self._mean = mean.flatten() * folded_std + folded_mean
        self._std = std.flatten() * folded_std
        self._sums = torch.zeros(4, c, dtype=torch.float64)
        self._count = self._images = 0

    def update(self, posteriors: LatentPosteriors) -> None:
        """Add a batch's posteriors."""
        mean, std = (
            x.detach().cpu().double().transpose(0, 1).flatten(1) * self._std[:, None]
            for x in (posteriors.mean, posteriors.std)
        )
        mean, logvar = mean + self._mean[:, None], 2 * std.log()
        terms = (mean, mean.square(), logvar.exp(), logvar)
        self._sums += torch.stack([x.sum(1) for x in terms])
        self._count += mean.shape[1]
        self._images += len(posteriors.mean)

    def bits_per_image(self) -> dict[str, float]:
        """Return `kl_bits` and `rate_bits`, both in bits per image.

        The KL divergence is to the standard normal, as in the training's loss. The rate is the KL
        divergence to a normal with each channel's own mean and deviation. It is the smallest of all
        such KLs, does not depend on the latent's scale, and is an upper bound on the information
        that the latent has about the image.
        """
        mean, square, variance, logvar = self._sums / self._count
        kl = 0.5 * (square + variance - 1 - logvar)
        total = (square - mean.square() + variance).clamp(min=1e-30)
        rate = 0.5 * (total.log() - logvar)
        values_per_channel = self._count / self._images
        kl_bits, rate_bits = (
            (x.sum() * values_per_channel / math.log(2)).item() for x in (kl, rate)
        )
        return {"kl_bits": kl_bits, "rate_bits": rate_bits}


def rate_figures(rate: PosteriorRate | None, compression: Compression) -> dict[str, Any]:
    """Return the posterior's bits per pixel, and the bytes per image that the yardsticks may use.

    Without a posterior there is no rate; the budget is then one byte per latent value.
    """
    if rate is None:
        return {"budget_bytes": float(compression.latent_values), "budget": "one byte per value"}
    bits = rate.bits_per_image()
    pixels = compression.image_shape[1] * compression.image_shape[2]
    return {
        "kl_bits_per_pixel": bits["kl_bits"] / pixels,
        "rate_bits_per_pixel": bits["rate_bits"] / pixels,
        "budget_bytes": bits["rate_bits"] / 8,
        "budget": "the posterior's rate",
    }


def measure_smoothness(
    vae: Autoencoder,
    dataset: ImageDataset,
    latent_std: torch.Tensor,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Measure how much noise in the latent changes the decoded image.

    Args:
        dataset: a few images.
        latent_std: `(c,)` float, the latent's deviation in each channel.

    Returns:
        Noise levels in deviations of the latent, and each one's mean PSNR against no noise.
    """
    generator, psnr = torch.Generator().manual_seed(seed), []
    for rows in torch.arange(len(dataset)).split(batch_size):
        noisy = latent_noise_rows(vae, dataset.read(rows), latent_std, generator).clamp(0, 1)
        levels = range(1, noisy.shape[1])
        psnr.append(torch.stack([image_psnr(noisy[:, i], noisy[:, 0]) for i in levels], dim=1))
    return {
        "latent_noise_levels": NOISE_LEVELS,
        "latent_noise_psnr_db": torch.cat(psnr).mean(0).tolist(),
    }
