"""A data set's latents: their scale, and every image encoded once before the denoiser trains."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_latent.data.image_dataset import ImageDataset
from hf_latent.encode import check_images, normalize_latents
from hf_latent.models.fold import LatentStatistics, measure_latents, sum_latents
from hf_latent.training.batches import ignore_signals
from hf_latent.training.run import TrainingConfig


@dataclass(frozen=True)
class LatentMoments:
    """The posteriors of a data set's images, on the denoiser's scale, in memory.

    Attributes:
        mean: `(views, N, c, h, w)` float32 on the CPU; view 0 is the image, view 1, where there is
            one, the latent of its mirror image (which is not the mirrored latent).
        std: `(views, N, c, h, w)` float32: the posterior's deviation.
        class_labels: `(N,)` int64, or None.
    """

    mean: torch.Tensor
    std: torch.Tensor
    class_labels: torch.Tensor | None

    def sample(
        self, indices: torch.Tensor, mirrored: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Draw latents from the posteriors of some images.

        Args:
            indices: `(B,)` int64.
            mirrored: `(B,)` bool: take the mirror image's.
            noise: `(B, c, h, w)`, standard normal.

        Returns:
            `(B, c, h, w)` float32.
        """
        views = mirrored.long()
        return self.mean[views, indices] + self.std[views, indices] * noise


@torch.no_grad()
def measure_latent_scale(
    vae: AutoencoderKL, dataset: ImageDataset, config: TrainingConfig, accelerator: Accelerator
) -> LatentStatistics:
    """Measure the statistics of posterior samples; each process measures its share.

    Args:
        vae: trained and frozen.
        dataset: the images, and their mirror images where flips are on.
        config: the batch size.
        accelerator: adds up the processes' shares.

    Returns:
        The statistics per channel, the same in every process.
    """

    def posteriors() -> Iterator[DiagonalGaussianDistribution]:
        share = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        for mirrored in (False, True) if config.horizontal_flip else (False,):
            loader: DataLoader = DataLoader(
                Subset(dataset.view(mirrored), share),
                config.train_batch_size,
                num_workers=config.dataloader_num_workers,
            )
            show = accelerator.is_main_process
            for batch in tqdm(loader, desc="latent scale", unit="batch", disable=not show):
                yield vae.encode(batch["images"].to(accelerator.device)).latent_dist

    # A process may have no image at all.
    share_sums = torch.zeros(4, vae.config.latent_channels, dtype=torch.float64)
    for posterior in posteriors():
        share_sums += sum_latents([posterior])
    sums = torch.tensor(gather_object([share_sums.tolist()]), dtype=torch.float64)
    return measure_latents(sums.sum(0))


@torch.no_grad()
def encode_batch(
    vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images to the mean and deviation of their posteriors, on the denoiser's scale.

    Args:
        vae: a frozen autoencoder.
        images: `(B, C, H, W)` float in [-1, 1].

    Returns:
        Mean and deviation, `(B, c, h, w)` float32 each; the deviation of an AutoencoderTiny is 0.
    """
    check_images(vae, images)
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latents"):
        mean, std = encoded.latents, torch.zeros_like(encoded.latents)
    else:
        mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
    scale = normalize_latents(vae, torch.ones_like(mean[:1]))
    scale = scale - normalize_latents(vae, torch.zeros_like(mean[:1]))
    return normalize_latents(vae, mean).float(), (std * scale).float()


def encode_moments(
    vae: AutoencoderKL | AutoencoderTiny,
    dataset: ImageDataset,
    accelerator: Accelerator,
    config: TrainingConfig,
    mirror: bool = False,
) -> LatentMoments:
    """Encode a whole data set, each process its share; every process gets all of it.

    Args:
        vae: a frozen autoencoder, on the accelerator's device.
        dataset: the images; it is read without random crops or flips.
        accelerator: gathers the processes' shares.
        config: batch size and reading processes.
        mirror: encode every image's mirror image too.

    Returns:
        The posteriors, in the order of the data set.
    """
    means, stds, labels = [], [], []
    for mirrored in (False, True) if mirror else (False,):
        loader: DataLoader = DataLoader(
            dataset.view(mirrored),
            config.train_batch_size,
            num_workers=config.dataloader_num_workers,
            worker_init_fn=ignore_signals,
        )
        batches = accelerator.prepare(loader)
        show = accelerator.is_main_process
        for batch in tqdm(batches, desc="encode", unit="batch", disable=not show):
            moments = encode_batch(vae, batch["images"])
            # gather_for_metrics drops what was added to make the last batches even.
            mean, std = accelerator.gather_for_metrics(moments)
            means.append(mean.cpu())
            stds.append(std.cpu())
            if "class_labels" in batch and not mirrored:
                labels.append(accelerator.gather_for_metrics(batch["class_labels"]).cpu())
    views = 2 if mirror else 1
    mean, std = (torch.cat(x).unflatten(0, (views, len(dataset))) for x in (means, stds))
    return LatentMoments(mean, std, torch.cat(labels) if labels else None)
