"""Measure the scale of a trained autoencoder's latents, and estimate how long that takes."""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader, Subset

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.messages import progress_bar
from hf_latent.models.fold import LatentStatistics, measure_latents, sum_latents
from hf_latent.training.run.accelerator import ImageTrainingConfig
from hf_latent.training.run.ema import eval_mode

TIMED_BATCHES = 3
SAFETY = 1.2  # a machine may slow down after the timing


@torch.no_grad()
def measure_latent_scale(
    vae: AutoencoderKL, dataset: ImageDataset, config: ImageTrainingConfig, accelerator: Accelerator
) -> LatentStatistics:
    """Measure the statistics of posterior samples per channel; each process measures its share.

    Args:
        vae: trained and frozen.
        dataset: the images. With flips, their mirror images are measured too.
        accelerator: gathers the processes' shares.

    Returns:
        The same statistics in every process.
    """
    share = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    views = (False, True) if config.horizontal_flip else (False,)
    # A process may have no images, so the sums start at 0.
    share_sums = torch.zeros(4, vae.config.latent_channels, dtype=torch.float64)
    shown = accelerator.is_main_process
    bar = progress_bar(
        total=len(views) * len(share), desc="latent scale", unit="image", disable=not shown
    )
    with bar, eval_mode(vae):
        for mirrored in views:
            loader: DataLoader = DataLoader(
                Subset(dataset.view(mirrored), share),
                config.train_batch_size,
                num_workers=config.dataloader_num_workers,
            )
            for batch in loader:
                images = batch["images"].to(accelerator.device)
                share_sums += sum_latents(vae.encode(images).latent_dist)
                bar.update(len(images))
    sums = torch.tensor(gather_object([share_sums.tolist()]), dtype=torch.float64)
    return measure_latents(sums.sum(0))


def estimate_seconds(
    vae: AutoencoderKL,
    dataset: ImageDataset,
    count: int,
    config: ImageTrainingConfig,
    accelerator: Accelerator,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Estimate how long `measure_latent_scale` takes, from a few batches.

    Args:
        vae: of the same shape.
        dataset: images of the same kind.
        count: number of images to measure later.
        now: returns the time in seconds.

    Returns:
        Seconds with a margin, the same in every process.
    """
    part = dataset.evenly_spaced(
        TIMED_BATCHES * config.train_batch_size * accelerator.num_processes
    )
    start = now()
    for _ in range(2):  # the first run is warm-up
        start = now()
        measure_latent_scale(vae, part, config, accelerator)
    seconds = SAFETY * (now() - start) * count / len(part)
    return broadcast_object_list([seconds])[0]
