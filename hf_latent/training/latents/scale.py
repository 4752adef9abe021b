"""Measure the scale of a trained autoencoder's latents."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.models.fold import LatentStatistics, Posterior, measure_latents, sum_latents
from hf_latent.training.run.accelerator import TrainingConfig


@torch.no_grad()
def measure_latent_scale(
    vae: AutoencoderKL, dataset: ImageDataset, config: TrainingConfig, accelerator: Accelerator
) -> LatentStatistics:
    """Measure the statistics of posterior samples per channel; each process measures its share.

    Args:
        vae: trained and frozen.
        dataset: the images. With flips, their mirror images are measured too.
        accelerator: gathers the processes' shares.

    Returns:
        The same statistics in every process.
    """

    def posteriors() -> Iterator[Posterior]:
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

    # A process may have no images, so the sums start at 0.
    share_sums = torch.zeros(4, vae.config.latent_channels, dtype=torch.float64)
    for posterior in posteriors():
        share_sums += sum_latents(posterior)
    sums = torch.tensor(gather_object([share_sums.tolist()]), dtype=torch.float64)
    return measure_latents(sums.sum(0))
