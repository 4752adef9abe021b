"""How much of an image an autoencoder keeps."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)


@dataclass(frozen=True)
class ReconstructionFigures:
    """Means of per-image figures.

    Attributes:
        psnr_db: peak signal-to-noise ratio, data range 1.
        ssim: structural similarity (Wang et al. 2004), Gaussian window of 11 pixels.
        images: how many were measured.
    """

    psnr_db: float
    ssim: float
    images: int


def measure_reconstructions(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> ReconstructionFigures:
    """Compare images with their reconstructions.

    Args:
        pairs: batches of originals and reconstructions, `(B, C, H, W)` float in [0, 1] each;
            reconstructions are clamped to it.

    Returns:
        The means over all images.
    """
    psnr, ssim = [], []
    for originals, reconstructions in pairs:
        arguments = (reconstructions.clamp(0, 1), originals)
        psnr.append(peak_signal_noise_ratio(*arguments, 1.0, reduction="none", dim=(1, 2, 3)))
        similarity = structural_similarity_index_measure(
            *arguments, data_range=1.0, reduction="none"
        )
        ssim.append(torch.as_tensor(similarity).reshape(-1))
    psnr_all, ssim_all = torch.cat(psnr), torch.cat(ssim)
    return ReconstructionFigures(psnr_all.mean().item(), ssim_all.mean().item(), len(psnr_all))


def center_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the middle out of images, for example what padding was put around.

    Args:
        images: `(B, C, H, W)`.
        size: height and width of the crop, at most H and W.

    Returns:
        `(B, C, size, size)`.
    """
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]
