"""Measure a denoiser's loss on held-out latents and save samples, during its training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_latent.data.latents.cache import LatentBatch
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import add_noise, is_flow
from hf_latent.pipeline.decode import shown_channels
from hf_latent.training.losses import denoising_loss
from hf_latent.training.run.batches import draw_seeds, seeded_generator
from hf_latent.training.run.pictures import GRID_COLUMNS, MAX_GRID_ROWS, save_grid

NOISE_LEVEL_PARTS = 5


def evenly_spaced_timesteps(scheduler: SchedulerMixin, count: int) -> torch.Tensor:
    """Return the middle of each of `count` equal parts of the scheduler's timesteps.

    They are `(count,)`: float32 for flow, otherwise int64.
    """
    timesteps = (torch.arange(count) + 0.5) / count * scheduler.config.num_train_timesteps
    return timesteps if is_flow(scheduler) else timesteps.long()


@torch.no_grad()
def measure_held_out_loss(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    held_out: LatentBatch,
    batch_size: int,
    seed: int,
) -> tuple[float, dict[str, float]]:
    """Measure the unweighted loss on held-out latents, with the same noise in every call.

    Args:
        unet: with the averaged weights.
        scheduler: determines the objective.
        held_out: held-out images, on the CPU.
        batch_size: images per forward pass.
        seed: of the noise.

    Returns:
        The mean squared error over evenly spaced noise levels; and the same within each of five
        equal parts of the timesteps, by its name in the log, the least noise first. Parts without
        images are missing.
    """
    posteriors, count = held_out.posteriors, len(held_out)
    generator = seeded_generator(seed, "validation")
    posterior_noise, noise = torch.randn(2, *posteriors.mean.shape, generator=generator)
    latents = posteriors.sample(posterior_noise)
    # Shuffle, so that the noise level does not follow the order of the data.
    timesteps = evenly_spaced_timesteps(scheduler, count)
    timesteps = timesteps[torch.randperm(count, generator=generator)]
    loss, errors = 0.0, torch.empty(count)
    for rows in torch.arange(count).split(batch_size):
        noised = add_noise(scheduler, latents[rows], noise[rows], timesteps[rows]).to(unet.device)
        conditions = {name: x[rows].to(unet.device) for name, x in held_out.conditions.items()}
        output = unet(noised.noisy_latents, noised.timesteps, **conditions).sample
        loss += denoising_loss(output, noised.target, noised.weights).item() * len(rows)
        errors[rows] = (output.float() - noised.target.float()).square().mean((1, 2, 3)).cpu()
    width = scheduler.config.num_train_timesteps / NOISE_LEVEL_PARTS
    parts = (timesteps / width).long()
    figures = {}
    for part in parts.unique().tolist():
        name = f"validation_loss_timesteps_{round(part * width)}_to_{round((part + 1) * width)}"
        figures[name] = errors[parts == part].mean().item()
    return loss / count, figures


def save_samples(
    pipeline: LatentDiffusionPipeline,
    path: Path,
    batch_size: int,
    seed: int,
    prompts: Sequence[str] | None = None,
) -> None:
    """Generate images from the same noise in every call, and save them: a row a class or prompt.

    Args:
        pipeline: with the averaged weights.
        path: the PNG file.
        batch_size: images that are generated at once.
        seed: of the noise.
        prompts: in place of the classes.
    """
    rows = min(len(prompts) if prompts else pipeline.num_classes or 2, MAX_GRID_ROWS)
    row_of = [row for row in range(rows) for _ in range(GRID_COLUMNS)]
    images = sample_images(
        pipeline,
        None if prompts or pipeline.num_classes is None else row_of,
        len(row_of),
        draw_seeds(seed, "samples")[0],
        batch_size,
        prompts=[prompts[row] for row in row_of] if prompts else None,
    )
    save_grid(images * 2 - 1, path, shown=shown_channels(pipeline.vae))
