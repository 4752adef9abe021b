"""What an autoencoder keeps: edges and layout; and what it drops: added pixel noise.

Agreement of two sets of maps is the share of the one's variance that the other explains,
`1 - sum (a - b)^2 / sum (a - mean a)^2`: 1 for equal maps, 0 for a constant at the mean, and
negative where it is worse than that.
"""

import torch
from torch.nn import functional as F

NOISE_STD = 0.05  # of images in [0, 1]: 13 of 255 grey levels
LAYOUT_BLUR = 1 / 16  # deviation of the heavy blur, as a share of the shorter side


def sobel_edges(images: torch.Tensor) -> torch.Tensor:
    """Return the strength of edges: the length of the Sobel gradient.

    Args:
        images: `(B, C, H, W)` float.

    Returns:
        `(B, C, H, W)` float.
    """
    kernel = images.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernels = torch.stack([kernel, kernel.T])[:, None]
    flat = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(flat, kernels).norm(dim=1).unflatten(0, images.shape[:2])


def heavy_blur(images: torch.Tensor) -> torch.Tensor:
    """Blur images so far that only their layout is left: a Gaussian of 1/16 of their shorter side.

    Args:
        images: `(B, C, H, W)` float.

    Returns:
        `(B, C, H, W)` float.
    """
    std = LAYOUT_BLUR * min(images.shape[2:])
    reach = max(1, round(3 * std))
    weights = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * std**2))
    weights = (weights / weights.sum()).to(images)
    flat = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return flat[:, 0].unflatten(0, images.shape[:2])


class Agreement:
    """The agreement of two sets of maps, see above; each image's own mean is taken off first."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._error = self._variance = 0.0

    def update(self, originals: torch.Tensor, others: torch.Tensor) -> None:
        """Add maps `(B, C, H, W)` float and their counterparts."""
        self._error += (originals - others).double().square().sum().item()
        deviation = originals - originals.mean((2, 3), keepdim=True)
        self._variance += deviation.double().square().sum().item()

    def compute(self) -> float:
        """Return the agreement, at most 1; NaN where the originals do not vary."""
        return 1 - self._error / self._variance if self._variance else float("nan")


class NoiseSurvival:
    """How much of known noise, added to images, comes back in their reconstructions."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._product = self._answer = self._noise = 0.0

    def update(self, noise: torch.Tensor, answer: torch.Tensor) -> None:
        """Add noise, and what it changed in the reconstructions, `(B, C, H, W)` float each."""
        noise, answer = noise.double(), answer.double()
        self._product += (noise * answer).sum().item()
        self._answer += answer.square().sum().item()
        self._noise += noise.square().sum().item()

    def compute(self) -> dict[str, float]:
        """Return the figures.

        Returns:
            `noise_survival`, the share of the noise that comes back (the slope of the answer over
            the noise: 1 if all does, 0 if none); `noise_agreement`, the correlation of both; and
            `noise_gain`, the power of the answer over that of the noise.
        """
        correlation = self._product / (self._answer * self._noise) ** 0.5 if self._answer else 0.0
        return {
            "noise_survival": self._product / self._noise,
            "noise_agreement": correlation,
            "noise_gain": self._answer / self._noise,
        }
