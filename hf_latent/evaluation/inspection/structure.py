"""What an autoencoder keeps (edges and layout) and what it drops (added pixel noise)."""

import torch
from torch.nn import functional as F

NOISE_STD = 0.05  # of images in [0, 1]: 13 of 255 grey levels
LAYOUT_BLUR = 1 / 16  # deviation of the heavy blur, as a share of the shorter side


def sobel_edges(images: torch.Tensor) -> torch.Tensor:
    """Return the length of the Sobel gradient, `(B, C, H, W)` as the images."""
    kernel = images.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernels = torch.stack([kernel, kernel.T])[:, None]
    flat = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(flat, kernels).norm(dim=1).unflatten(0, images.shape[:2])


def heavy_blur(images: torch.Tensor) -> torch.Tensor:
    """Blur images `(B, C, H, W)` with a Gaussian of 1/16 of their shorter side: layout remains."""
    std = LAYOUT_BLUR * min(images.shape[2:])
    reach = max(1, round(3 * std))
    weights = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * std**2))
    weights = (weights / weights.sum()).to(images)
    flat = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return flat[:, 0].unflatten(0, images.shape[:2])


class Agreement:
    """The share of the variance of maps a that other maps b explain.

    It is `1 - sum (a - b)^2 / sum (a - mean a)^2` with each image's own mean: 1 for
    equal maps, 0 for a constant b at the mean, negative if b is worse than that.
    """

    def __init__(self) -> None:
        """Start without maps."""
        self._error = self._variance = 0.0

    def update(self, originals: torch.Tensor, others: torch.Tensor) -> None:
        """Add maps a and b, `(B, C, H, W)` float each."""
        self._error += (originals - others).double().square().sum().item()
        deviation = originals - originals.mean((2, 3), keepdim=True)
        self._variance += deviation.double().square().sum().item()

    def compute(self) -> float:
        """Return the agreement; NaN if the originals do not vary."""
        return 1 - self._error / self._variance if self._variance else float("nan")


class NoiseSurvival:
    """How much of known noise, added to images, comes back in their reconstructions."""

    def __init__(self) -> None:
        """Start without noise."""
        self._product = self._answer = self._noise = 0.0

    def update(self, noise: torch.Tensor, answer: torch.Tensor) -> None:
        """Add noise, and the change of the reconstructions that it causes, `(B, C, H, W)` each."""
        noise, answer = noise.double(), answer.double()
        self._product += (noise * answer).sum().item()
        self._answer += answer.square().sum().item()
        self._noise += noise.square().sum().item()

    def compute(self) -> dict[str, float]:
        """Return the figures.

        Returns:
            `noise_survival`, the slope of the answer over the noise: 1 if all of it comes back, 0
            if nothing does; `noise_agreement`, the correlation of both; and `noise_gain`, the power
            of the answer divided by the power of the noise.
        """
        correlation = self._product / (self._answer * self._noise) ** 0.5 if self._answer else 0.0
        return {
            "noise_survival": self._product / self._noise,
            "noise_agreement": correlation,
            "noise_gain": self._answer / self._noise,
        }
