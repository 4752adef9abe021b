"""The first training: the autoencoder.

Read from top to bottom: settings, data, model, steps, fold, save.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_latent.command import check_ranges, run_command
from hf_latent.data.images import ImageDataset, ImageSplits
from hf_latent.models.fold import fold_latent_scale, measure_latents, sum_latents
from hf_latent.models.frozen import freeze
from hf_latent.models.presets import Preset, create_autoencoder, measure_compression
from hf_latent.output import replaced_whole
from hf_latent.training.batches import GlobalBatchSampler, seeded_generator
from hf_latent.training.clock import TrainingClock, TrainingSummary
from hf_latent.training.ema import ema_weights
from hf_latent.training.losses import kl_per_latent_value, reconstruction_loss
from hf_latent.training.run import (
    TrainingConfig,
    create_ema,
    create_optimizer,
    open_run_images,
    process_rows,
    start_accelerator,
    start_run_folder,
)
from hf_latent.training.validation import validate_autoencoder


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(TrainingConfig):
    """Train an autoencoder on your images.

    Attributes:
        preset: the autoencoder's configuration: tiny (f4), small (f4), base (f8), or LDM's
            published ldm-f4 and ldm-f8.
        latent_channels: channels of the latent; unset, the preset's.
        kl_weight: weight of the KL divergence in nats per latent value.
    """

    preset: Preset = "tiny"
    latent_channels: int | None = None
    kl_weight: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        check_ranges(self, positive=("latent_channels",), not_negative=("kl_weight",))


class TrainableAutoencoder(nn.Module):
    """Encoding, sampling and decoding in one forward pass.

    Distributed training averages gradients only for what goes through the wrapped module's
    forward, and `AutoencoderKL.forward` keeps the posterior to itself.

    Args:
        vae: the autoencoder to train.
    """

    def __init__(self, vae: AutoencoderKL):
        """Keep the autoencoder."""
        super().__init__()
        self.vae = vae

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct images from posterior samples.

        Args:
            images: `(B, C, H, W)` float in [-1, 1].
            noise: `(B, c, h, w)`, standard normal.

        Returns:
            Reconstructions `(B, C, H, W)`, and the posterior's mean and log-variance
            `(B, c, h, w)`.
        """
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


def _create_autoencoder(
    config: AutoencoderConfig, image_shape: tuple[int, int, int]
) -> AutoencoderKL:
    channels, height, width = image_shape
    changes = {} if config.latent_channels is None else {"latent_channels": config.latent_channels}
    torch.manual_seed(config.seed)
    return create_autoencoder(
        config.preset, channels, height if height == width else (height, width), **changes
    )


@torch.no_grad()
def fold_over(
    vae: AutoencoderKL, dataset: ImageDataset, config: AutoencoderConfig, accelerator: Accelerator
) -> AutoencoderKL:
    """Fold the latent scale of all training images in; each process measures its share.

    Args:
        vae: trained and frozen.
        dataset: the training images, and their mirror images where flips are on.
        config: the batch size.
        accelerator: adds up the processes' shares.

    Returns:
        A folded copy.
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

    sums = torch.tensor(gather_object([sum_latents(posteriors()).tolist()]), dtype=torch.float64)
    return fold_latent_scale(vae, measure_latents(sums.sum(0)))


@dataclass(frozen=True)
class AutoencoderSummary(TrainingSummary):
    """What the training of an autoencoder did.

    Attributes:
        kl_nats_per_latent_value: of held-out images, before the fold.
    """

    kl_nats_per_latent_value: float


def train_autoencoder(
    config: AutoencoderConfig, splits: ImageSplits | None = None
) -> AutoencoderSummary:
    """Train an autoencoder, fold its latent scale in and save it.

    Args:
        config: the settings.
        splits: the images, where they are open already.

    Returns:
        What was done; the model is in `output_dir/model`.

    Raises:
        UserError: if the settings, the images or the folder are not fit.
    """
    accelerator = start_accelerator(config)
    splits = splits or open_run_images(config, accelerator)
    vae = _create_autoencoder(config, splits.image_shape)
    compression = measure_compression(vae, splits.image_shape)
    accelerator.print(f"autoencoder: {compression}")
    output_dir = start_run_folder(config, splits, accelerator)

    ema = create_ema(config, vae, accelerator.device)
    optimizer = create_optimizer(config, vae)
    model, optimizer = accelerator.prepare(TrainableAutoencoder(vae), optimizer)
    rows = process_rows(config, accelerator)
    sampler = GlobalBatchSampler(len(splits.train), rows, config.seed)
    batches = iter(
        DataLoader(splits.train, batch_sampler=sampler, num_workers=config.dataloader_num_workers)
    )
    clock = TrainingClock(config, accelerator, "autoencoder")

    def validate() -> float:
        with clock.validation():
            held_out = splits.validation.first(config.max_validation_samples)
            loss, kl = validate_autoencoder(vae, held_out, config, clock.step)
            clock.log_validation_loss(loss, kl_nats_per_latent_value=kl)
        return kl

    for step in clock.steps(optimizer):
        for micro_step in range(config.gradient_accumulation_steps):
            images = next(batches)["images"].to(accelerator.device)
            generator = seeded_generator(config.seed, "posterior", step, micro_step)
            noise = torch.randn(rows.global_size, *compression.latent_shape, generator=generator)
            noise = rows.of(noise).to(accelerator.device)
            with accelerator.accumulate(model):
                reconstructions, mean, logvar = model(images, noise)
                loss = reconstruction_loss(reconstructions, images)
                loss = loss + config.kl_weight * kl_per_latent_value(mean, logvar)
                clock.log_loss(loss)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        ema.step(vae.parameters())
        if clock.validation_is_due and accelerator.is_main_process:
            with ema_weights(ema, vae):
                validate()

    ema.copy_to(vae.parameters())
    freeze(vae)
    kl = validate() if accelerator.is_main_process else math.nan
    folded = fold_over(vae, splits.train, config, accelerator)
    if accelerator.is_main_process:
        with replaced_whole(output_dir / "model") as temporary:
            folded.save_pretrained(temporary)
    accelerator.wait_for_everyone()
    return AutoencoderSummary(
        **vars(clock.summary(output_dir / "model")), kl_nats_per_latent_value=kl
    )


if __name__ == "__main__":
    run_command(AutoencoderConfig, train_autoencoder)
