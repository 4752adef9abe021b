"""Train a denoiser on pixels, without an autoencoder: what latent diffusion is compared with.

python train_scripts/train_pixels.py --data DATA --max_train_minutes 5 --output_dir OUT
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.training_utils import EMAModel, compute_density_for_timestep_sampling
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch.utils.data import DataLoader, RandomSampler

from hf_latent.command import Share, run_command
from hf_latent.data.device import fastest_device
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import open_images
from hf_latent.output import check_output_dir, write_json


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(ImagesConfig):
    """Train a flow-matching denoiser on pixels, in plain diffusers parts.

    Attributes:
        output_dir: The folder for unet/, scheduler/ and training.json.
        overwrite_output_dir: Accept a folder with files in it.
        block_out_channels: Channels of each level; the lower half of the levels has attention.
        layers_per_block: Residual blocks of each level.
        train_batch_size: Images of a step.
        learning_rate: The highest learning rate, after a warm-up; it then falls along a cosine.
        lr_warmup_ratio: Share of the minutes in which the learning rate rises from 0.
        max_train_minutes: Minutes of training, of the clock.
        ema_decay: Highest decay of the average of the weights, which is saved.
        label_dropout: Share of the labels that training replaces by the null label.
    """

    output_dir: str
    overwrite_output_dir: bool = False
    block_out_channels: tuple[PositiveInt, ...] = (32, 64, 96, 96)
    layers_per_block: PositiveInt = 1
    train_batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 2e-3
    lr_warmup_ratio: Share = 0.05
    max_train_minutes: PositiveFloat = 5.0
    ema_decay: Share = 0.999
    label_dropout: Share = 0.1


def create_unet(config: PixelsConfig, images: ImageDataset, num_classes: int) -> UNet2DModel:
    """Create a denoiser of pixels; the last of its class embeddings is the null label's."""
    levels = len(config.block_out_channels)
    attention = [level >= levels // 2 for level in range(levels)]
    channels, height, width = images.image_shape
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=[("DownBlock2D", "AttnDownBlock2D")[x] for x in attention],
        up_block_types=[("UpBlock2D", "AttnUpBlock2D")[x] for x in reversed(attention)],
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=num_classes + 1,
    )


def train_pixels(config: PixelsConfig, now: Callable[[], float] = time.perf_counter) -> None:
    """Train by a clock in seconds; save the denoiser, its scheduler and the training's figures."""
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    torch.manual_seed(config.seed)
    splits = open_images(config)
    null = splits.num_classes or 0
    device = fastest_device()
    unet = create_unet(config, splits.train, null).to(device)
    ema = EMAModel(unet.parameters(), config.ema_decay, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), config.learning_rate, (0.9, 0.99), fused=True)
    sampler = RandomSampler(splits.train, num_samples=10**9, replacement=True)
    loader = iter(DataLoader(splits.train, config.train_batch_size, sampler=sampler))
    steps, start, share, warmup = 0, now(), 0.0, config.lr_warmup_ratio
    while (share := (now() - start) / (60 * config.max_train_minutes)) < 1:
        cosine = 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * (share - warmup) / (1 - warmup)))
        rate = share / warmup if share < warmup else cosine.item()
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate
        batch = next(loader)
        images = batch["images"].to(device)
        labels = batch.get("class_labels", torch.zeros(len(images), dtype=torch.long)).to(device)
        labels[torch.rand(len(labels), device=device) < config.label_dropout] = null
        # Rectified flow (Liu et al. 2023), levels logit-normal (Esser et al. 2024, section 3.1).
        level = compute_density_for_timestep_sampling("logit_normal", len(images), 0, 1).to(device)
        noise, t = torch.randn_like(images), level.view(-1, 1, 1, 1)
        noisy = (1 - t) * images + t * noise
        output = unet(noisy, 1000 * level, class_labels=labels).sample
        (output - (noise - images)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        steps += 1
    ema.copy_to(unet.parameters())
    unet.eval().save_pretrained(Path(output_dir) / "unet")
    FlowMatchEulerDiscreteScheduler().save_pretrained(Path(output_dir) / "scheduler")
    minutes, images_seen = (now() - start) / 60, steps * config.train_batch_size
    figures = {"minutes": minutes, "steps": steps, "images": images_seen}
    write_json(Path(output_dir) / "training.json", figures | {"parameters": unet.num_parameters()})


if __name__ == "__main__":
    run_command(PixelsConfig, train_pixels)
