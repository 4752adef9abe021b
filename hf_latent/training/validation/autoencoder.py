"""Measure an autoencoder on held-out images, during its training and at the end."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from hf_latent.data.images.dataset import evenly_spaced
from hf_latent.evaluation.features.networks import FeatureNetwork
from hf_latent.evaluation.inspection.yardsticks import resample
from hf_latent.evaluation.measures.reconstruction import (
    ReconstructionFigures,
    image_psnr,
    measure_reconstructions,
)
from hf_latent.evaluation.pictures import composite, interleave
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.pipeline.decode import shown_channels
from hf_latent.training.losses import kl_per_latent_value, perceptual_loss, reconstruction_loss
from hf_latent.training.run.pictures import GRID_COLUMNS, MAX_GRID_ROWS, save_grid

# A latent channel is dead if the variance of its posterior mean over the images is lower (the
# inactive units of Burda et al. 2016, section 5.2).
DEAD_CHANNEL_VARIANCE = 1e-2
LARGEST_PSNR_DB = 60.0  # of a flat image, which is resampled without an error
SHOWN_PAIRS = GRID_COLUMNS * MAX_GRID_ROWS // 2


@dataclass(frozen=True)
class HeldOutFigures:
    """Figures of held-out images, reconstructed from the posterior's mean.

    Attributes:
        loss: mean error, L1 or L2 as in training, in units of [-1, 1] or their square.
        kl_nats_per_latent_value: KL divergence of the posterior.
        perceptual_distance: None without a feature network.
        latent_mean: mean of posterior samples per channel.
        latent_std: standard deviation of posterior samples per channel.
        dead_channels: numbers of the dead channels, from 0.
        bicubic_psnr_db: PSNR of the images shrunk to as many values as a latent has, and enlarged.
            None if a latent has no fewer values than an image.
        reconstruction: PSNR, SSIM and the like.
    """

    loss: float
    kl_nats_per_latent_value: float
    perceptual_distance: float | None
    latent_mean: list[float]
    latent_std: list[float]
    dead_channels: list[int]
    bicubic_psnr_db: float | None
    reconstruction: ReconstructionFigures

    def scalars(self) -> dict[str, Any]:
        """Return the figures for a log line, flat, without those that were not measured."""
        distance, bicubic = self.perceptual_distance, self.bicubic_psnr_db
        measured = asdict(self.reconstruction).items()
        return {
            "kl_nats_per_latent_value": self.kl_nats_per_latent_value,
            **({} if distance is None else {"perceptual_distance": distance}),
            "latent_std_smallest": min(self.latent_std),
            "latent_std_largest": max(self.latent_std),
            "dead_channels": len(self.dead_channels),
            "alive_channels": len(self.latent_std) - len(self.dead_channels),
            **({} if bicubic is None else {"bicubic_psnr_db": bicubic}),
            **{k: v for k, v in measured if v is not None and not math.isnan(v)},
        }


@torch.no_grad()
def validate_autoencoder(
    vae: AutoencoderKL,
    loader: DataLoader,
    loss_kind: Literal["l1", "l2"],
    picture: Path,
    network: FeatureNetwork | None = None,
    previous: HeldOutFigures | None = None,
) -> HeldOutFigures:
    """Reconstruct held-out images from the posterior's mean, and save pairs of them.

    Args:
        vae: with the averaged weights.
        loader: of the held-out images.
        loss_kind: as in training.
        picture: the PNG file of some images and their reconstructions, evenly spaced.
        network: measures the perceptual distance, if given.
        previous: earlier figures of the same images, whose bicubic yardstick is taken over.
    """
    sums, moments = torch.zeros(3), torch.zeros(4, vae.config.latent_channels, dtype=torch.float64)
    bicubic_psnr_db: list[torch.Tensor] = []
    known_bicubic = None if previous is None else previous.bicubic_psnr_db
    shown = shown_channels(vae)
    is_measured = shown is not None
    pairs: list[torch.Tensor] = []

    def reconstruct() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(loader):
            images = batch["images"].to(vae.device)
            posterior = vae.encode(images).latent_dist
            reconstructions = vae.decode(posterior.mean).sample
            # Of all batches, because images sorted by class have one class in a batch.
            end, start = (x * SHOWN_PAIRS // len(loader) for x in (number + 1, number))
            rows = evenly_spaced(len(images), end - start)
            pairs.append(interleave(images[rows], reconstructions[rows]))
            figures = torch.stack(
                [
                    reconstruction_loss(reconstructions, images, loss_kind, is_measured),
                    kl_per_latent_value(posterior.mean, posterior.logvar),
                    torch.zeros(()).to(images)
                    if network is None
                    else perceptual_loss(network, reconstructions, images),
                ]
            )
            sums.add_(figures.cpu() * len(images))
            moments.add_(sum_latents(posterior))
            originals = images.cpu() / 2 + 0.5
            visible = composite(originals, 1.0, is_measured)
            latent_values = posterior.mean[0].numel()
            if known_bicubic is None and latent_values < visible[0].numel():
                psnr_db = image_psnr(resample(visible, latent_values), visible)
                bicubic_psnr_db.append(psnr_db.clamp(max=LARGEST_PSNR_DB))
            yield originals, reconstructions.cpu() / 2 + 0.5

    kept = measure_reconstructions(reconstruct(), shown=shown)
    save_grid(torch.cat(pairs), picture, group=2, shown=shown)
    loss, kl, distance = (sums / kept.images).tolist()
    latents = measure_latents(moments)
    count, mean, square, _ = moments
    variance_of_mean = square / count - (mean / count).square()
    return HeldOutFigures(
        loss=loss,
        kl_nats_per_latent_value=kl,
        perceptual_distance=None if network is None else distance,
        latent_mean=latents.mean.tolist(),
        latent_std=latents.std.tolist(),
        dead_channels=(variance_of_mean < DEAD_CHANNEL_VARIANCE).nonzero().flatten().tolist(),
        bicubic_psnr_db=torch.cat(bicubic_psnr_db).mean().item()
        if bicubic_psnr_db
        else known_bicubic,
        reconstruction=kept,
    )
