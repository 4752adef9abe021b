"""What a training shows as it goes: held-out loss and a picture."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch.utils.data import DataLoader

from hf_latent.add_noise import add_noise, is_flow
from hf_latent.data.images import ImageDataset
from hf_latent.evaluation.pictures import image_grid, interleave
from hf_latent.output import replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.batches import seeded_generator
from hf_latent.training.latents import LatentMoments
from hf_latent.training.losses import denoising_loss, kl_per_latent_value, reconstruction_loss
from hf_latent.training.run import TrainingConfig

GRID_COLUMNS = 8
MAX_GRID_ROWS = 10


def _save_picture(images: torch.Tensor, config: TrainingConfig, step: int) -> None:
    path = Path(config.output_dir) / "samples" / f"step-{step:06d}.png"
    with replaced_whole(path) as temporary:
        image_grid(images / 2 + 0.5, GRID_COLUMNS).save(temporary)


@torch.no_grad()
def validate_autoencoder(
    vae: AutoencoderKL, dataset: ImageDataset, config: TrainingConfig, step: int
) -> tuple[float, float]:
    """Reconstruct held-out images from the posterior's mean, and save pairs of them.

    Args:
        vae: with the averaged weights.
        dataset: the held-out images.
        config: the batch size and the run's folder.
        step: the picture's number.

    Returns:
        The mean absolute error, in units of [-1, 1], and the KL in nats per latent value.
    """
    loader: DataLoader = DataLoader(
        dataset, config.train_batch_size, num_workers=config.dataloader_num_workers
    )
    loss, kl, count = 0.0, 0.0, 0
    for batch in loader:
        images = batch["images"].to(vae.device)
        posterior = vae.encode(images).latent_dist
        reconstructions = vae.decode(posterior.mean).sample
        if count == 0 and images.shape[1] in (1, 3, 4):
            pairs = interleave(images, reconstructions)[: GRID_COLUMNS * MAX_GRID_ROWS]
            _save_picture(pairs, config, step)
        loss += reconstruction_loss(reconstructions, images).item() * len(images)
        kl += kl_per_latent_value(posterior.mean, posterior.logvar).item() * len(images)
        count += len(images)
    return loss / count, kl / count


def evenly_spaced_timesteps(scheduler: SchedulerMixin, count: int) -> torch.Tensor:
    """Return noise levels in the middle of `count` equal parts of the scheduler's range.

    Args:
        scheduler: says the objective.
        count: how many.

    Returns:
        `(count,)`: float32 for flow, else int64.
    """
    timesteps = (torch.arange(count) + 0.5) / count * scheduler.config.num_train_timesteps
    return timesteps if is_flow(scheduler) else timesteps.long()


@torch.no_grad()
def held_out_denoising_loss(
    unet: UNet2DModel, scheduler: SchedulerMixin, moments: LatentMoments, config: TrainingConfig
) -> float:
    """Measure the loss on held-out latents, with noise and noise levels that never change.

    Args:
        unet: with the averaged weights.
        scheduler: says the objective.
        moments: the held-out posteriors.
        config: the batch size and the seed of the noise.

    Returns:
        The mean squared error, unweighted, over evenly spaced noise levels.
    """
    count = moments.mean.shape[1]
    generator = seeded_generator(config.seed, "validation")
    posterior_noise, noise = torch.randn(2, *moments.mean.shape[1:], generator=generator)
    indices, view = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    latents = moments.sample(indices, view, posterior_noise)
    # Shuffled, so that the noise level does not go with the order of the data.
    timesteps = evenly_spaced_timesteps(scheduler, count)
    timesteps = timesteps[torch.randperm(count, generator=generator)]
    loss = 0.0
    for rows in torch.arange(count).split(config.train_batch_size):
        noised = add_noise(scheduler, latents[rows], noise[rows], timesteps[rows]).to(unet.device)
        labels = moments.class_labels
        if labels is not None:
            labels = labels[rows].to(unet.device)
        output = unet(noised.noisy_latents, noised.timesteps, class_labels=labels).sample
        loss += denoising_loss(output, noised.target, noised.weights).item() * len(rows)
    return loss / count


def save_samples(
    vae: AutoencoderKL | AutoencoderTiny,
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    config: TrainingConfig,
    step: int,
) -> None:
    """Generate images from noise that never changes, one row a class, and save them.

    Args:
        vae: the frozen autoencoder.
        unet: with the averaged weights.
        scheduler: the objective's; sampling is done with a copy.
        config: the run's folder and the seed of the noise.
        step: the picture's number.
    """
    pipeline = LatentDiffusionPipeline(vae, unet, type(scheduler).from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    rows = min(pipeline.num_classes or 2, MAX_GRID_ROWS)
    labels = [row for row in range(rows) for _ in range(GRID_COLUMNS)]
    (images,) = pipeline(
        class_labels=None if pipeline.num_classes is None else labels,
        num_images=len(labels),
        generator=seeded_generator(config.seed, "samples"),
        output_type="pt",
        return_dict=False,
    )
    if images.shape[1] in (1, 3, 4):
        _save_picture(images * 2 - 1, config, step)
