"""How much of an image an autoencoder keeps."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from hf_latent.data.images.pixels import Box
from hf_latent.evaluation.measures.colour import ColourFit
from hf_latent.evaluation.pictures import composite, to_picture
from hf_latent.models.load import Autoencoder
from hf_latent.models.slicing import slice_if_needed
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images


@dataclass(frozen=True)
class ReconstructionFigures:
    """Means of per-image figures, and R2 over all images; RGBA images are composited on white.

    Attributes:
        psnr_db: peak signal-to-noise ratio, data range 1.
        ssim: structural similarity (Wang et al. 2004), Gaussian window of 11 pixels. NaN for images
            smaller than the window.
        images: the number of images.
        luma_r2: R2 of the brightness of colour images, without the padding.
        chroma_r2: R2 of their colours; None if all are grey.
        grey_psnr_db: of RGBA images composited on mid-grey.
        grey_ssim: of RGBA images composited on mid-grey.
        alpha_psnr_db: of the alpha channel of RGBA images.
        unpadded_psnr_db: without the padding, of padded images.
        unpadded_ssim: without the padding, of padded images.
    """

    psnr_db: float
    ssim: float
    images: int
    luma_r2: float | None = None
    chroma_r2: float | None = None
    grey_psnr_db: float | None = None
    grey_ssim: float | None = None
    alpha_psnr_db: float | None = None
    unpadded_psnr_db: float | None = None
    unpadded_ssim: float | None = None


SSIM_WINDOW = 11
# RGBA images are composited on white and on mid-grey.
BACKGROUNDS = (1.0, 0.5)


def image_psnr(reconstructions: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of each image in dB, `(B,)`, for images `(B, C, H, W)` float in [0, 1]."""
    return peak_signal_noise_ratio(reconstructions, originals, 1.0, reduction="none", dim=(1, 2, 3))


def _ssim(reconstructions: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    if min(originals.shape[2:]) < SSIM_WINDOW:
        return torch.full((len(originals),), math.nan)
    similarity = structural_similarity_index_measure(
        reconstructions, originals, data_range=1.0, reduction="none"
    )
    return torch.as_tensor(similarity).reshape(-1)


def measure_reconstructions(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]],
    box: Box | None = None,
    shown: Sequence[int] | None = None,
) -> ReconstructionFigures:
    """Compare images with their reconstructions.

    Args:
        pairs: batches of originals and reconstructions, `(B, C, H, W)` float in [0, 1] each;
            reconstructions are clamped to that range.
        box: the part without padding, to measure it separately; None: there is no padding.
        shown: of measured images, as of `to_picture`. All of their channels count, and luma and
            chroma are those of the picture.
    """
    columns: dict[str, list[torch.Tensor]] = {}
    colours = ColourFit()
    for originals, reconstructions in pairs:
        pair = (reconstructions.clamp(0, 1), originals)
        is_measured = shown is not None
        white, grey = ([composite(x, level, is_measured) for x in pair] for level in BACKGROUNDS)
        figures = {"psnr_db": image_psnr(*white), "ssim": _ssim(*white)}
        if originals.shape[1] == 4 and not is_measured:
            figures |= {
                "grey_psnr_db": image_psnr(*grey),
                "grey_ssim": _ssim(*grey),
                "alpha_psnr_db": image_psnr(*(x[:, 3:] for x in pair)),
            }
        if box is not None:
            white = [box.cut(x) for x in white]
            figures |= {"unpadded_psnr_db": image_psnr(*white), "unpadded_ssim": _ssim(*white)}
        picture, reconstructed = (to_picture(x, shown) for x in white[::-1])
        if picture.shape[1] == 3:
            colours.update(picture, reconstructed)
        for name, values in figures.items():
            columns.setdefault(name, []).append(values)
    means = {name: torch.cat(values).mean().item() for name, values in columns.items()}
    images = sum(len(x) for x in columns["psnr_db"])
    return ReconstructionFigures(**means, **colours.compute(), images=images)


def encode_batch(
    vae: Autoencoder,
    images: torch.Tensor,
    generator: torch.Generator | None = None,
    sample_posterior: bool = False,
) -> torch.Tensor:
    """Encode images `(B, C, H, W)` float in [-1, 1], one by one if the memory is too small.

    Args:
        generator: of the posterior sample.
        sample_posterior: return a sample of the posterior instead of its mean.

    Returns:
        `(B, c, h, w)` on the autoencoder's device and in its dtype.
    """
    images = images.to(vae.device)
    return slice_if_needed(vae, lambda: encode_images(vae, images, generator, sample_posterior))


def decode_batch(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents `(B, c, h, w)`, one by one if the memory is too small.

    Returns:
        `(B, C, H, W)` float32 on the CPU, near [-1, 1] and not clamped.
    """
    return slice_if_needed(vae, lambda: decode_latents(vae, latents)).float().cpu()


@torch.no_grad()
def reconstruct(
    vae: Autoencoder,
    images: torch.Tensor,
    generator: torch.Generator | None = None,
    sample_posterior: bool = False,
) -> torch.Tensor:
    """Encode images and decode them again, see `encode_batch` and `decode_batch`."""
    return decode_batch(vae, encode_batch(vae, images, generator, sample_posterior))
