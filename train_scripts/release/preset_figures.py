"""Write the sizes and costs of the presets into docs/reports/presets.json, without training.

    python train_scripts/release/preset_figures.py

This takes seconds: the models have no memory for their weights (device `meta`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_latent.models.load import PRETRAINED
from hf_latent.models.presets import (
    Preset,
    create_autoencoder,
    create_denoiser,
    measure_compression,
)
from hf_latent.output import write_json

ROOT = Path(__file__).parents[2]
RELEASED = PRETRAINED / "fashion-mnist" / "training.json"
# Each preset with its usual resolutions.
PRESETS: list[tuple[Preset, int]] = [("tiny", 32), ("small", 64), ("small", 128), ("base", 256)]
PRESETS += [("base-fast", 256), ("ldm-f4", 256), ("ldm-f8", 256), ("ldm-f8", 512)]
# The forward pass, and the gradients of inputs and of weights, cost about as much each.
PASSES_A_TRAINING_STEP = 3


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the floating-point operations of a forward pass; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def measure_preset(preset: Preset, resolution: int) -> dict[str, Any]:
    """Return size and cost of a preset's two models for RGB images with class labels.

    Args:
        preset: its name.
        resolution: height and width in pixels.
    """
    shape = (3, resolution, resolution)
    with torch.device("meta"):
        vae = create_autoencoder(preset, image_channels=3, sample_size=resolution)
        compression = measure_compression(vae, shape)
        channels, *size = compression.latent_shape
        unet = create_denoiser(preset, vae, shape, num_classes=10)
        images, latents = torch.empty(1, *shape), torch.empty(1, channels, *size)
        labels, timesteps = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        unet_flops = count_flops(unet, latents, timesteps, labels)
        vae_flops = count_flops(vae, images)
    return {
        "preset": preset,
        "resolution": resolution,
        "latent_shape": list(compression.latent_shape),
        "compression_ratio": compression.ratio,
        "vae_parameters": sum(p.numel() for p in vae.parameters()),
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "vae_training_gflops_per_image": PASSES_A_TRAINING_STEP * vae_flops / 1e9,
        "unet_training_gflops_per_image": PASSES_A_TRAINING_STEP * unet_flops / 1e9,
    }


def measure_rate() -> float:
    """Return the GFLOP/s that the training of the released model reached on two CPU cores."""
    released = json.loads(RELEASED.read_text())
    with torch.device("meta"):
        vae = create_autoencoder("tiny", image_channels=1, sample_size=32)
        unet = create_denoiser("tiny", vae, tuple(released["image_shape"]), num_classes=10)
        latents = torch.empty(1, *released["latent_shape"])
        labels, timesteps = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        flops = count_flops(unet, latents, timesteps, labels)
    return PASSES_A_TRAINING_STEP * flops / 1e9 * released["images_per_second"]


if __name__ == "__main__":
    report = {
        "two_cores_gflops_per_second": measure_rate(),
        "presets": [measure_preset(*place) for place in PRESETS],
    }
    write_json(ROOT / "docs" / "reports" / "presets.json", report)
