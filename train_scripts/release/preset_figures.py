"""Write sizes, memory and speed of the presets into docs/reports/presets.json.

    python train_scripts/release/preset_figures.py

Each figure is that of a dry run with the preset's own batch, on RGB images with ten classes:
nothing is trained, a few steps are measured. This takes some minutes and 8 GB of memory.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_latent.evaluation.machine import machine_figures
from hf_latent.models.presets import Preset, create_autoencoder, measure_compression
from hf_latent.output import write_json
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.dry_run.estimate import DryRunEnd
from hf_latent.training.run.accelerator import TrainingConfig

REPORT = Path(__file__).parents[2] / "docs" / "reports" / "presets.json"
# Each preset with its usual resolutions.
PRESETS: list[tuple[Preset, int]] = [("tiny", 32), ("tiny", 64), ("small", 64), ("small", 128)]
PRESETS += [("base", 256), ("base-fast", 256), ("ldm-f4", 256), ("ldm-f8", 256), ("ldm-f8", 512)]
CLASSES, IMAGES_A_CLASS = 10, 4


def write_images(folder: Path, resolution: int) -> None:
    """Write pictures of noise, in a folder for each class."""
    generator = torch.Generator().manual_seed(0)
    for name in range(CLASSES):
        (folder / f"{name}").mkdir(parents=True)
        for number in range(IMAGES_A_CLASS):
            pixels = torch.randint(256, (resolution, resolution, 3), generator=generator)
            picture = Image.fromarray(pixels.to(torch.uint8).numpy())
            picture.save(folder / f"{name}" / f"{number}.png")


def dry_run(train: Callable[[Any], object], config: TrainingConfig) -> dict[str, Any]:
    """Return a training's weights, its batch, the memory for it, and images a second."""
    try:
        train(config)
    except DryRunEnd as end:
        figures = end.figures
    (parameters,) = figures["trained_parameters"].values()
    return {
        "parameters": parameters,
        "train_batch_size": figures["train_batch_size"],
        "learning_rate": config.learning_rate,
        "memory_mb": figures["memory_mb"],
        "measured_shape": figures["measured_shape"],
        "images_per_second": figures["images_per_step"] / figures["step_seconds"],
    }


def measure_preset(preset: Preset, resolution: int, folder: Path) -> dict[str, Any]:
    """Return the figures of a preset's two trainings.

    Args:
        preset: its name.
        resolution: height and width in pixels.
        folder: a new one, for the images and an autoencoder.
    """
    write_images(folder / "images", resolution)
    settings: dict[str, Any] = {
        "data": str(folder / "images"),
        "resolution": resolution,
        "preset": preset,
        "output_dir": str(folder / "run"),
        "dry_run": True,
    }
    vae = create_autoencoder(preset, image_channels=3, sample_size=resolution)
    compression = measure_compression(vae, (3, resolution, resolution))
    vae.save_pretrained(folder / "vae")
    return {
        "preset": preset,
        "resolution": resolution,
        "latent_shape": list(compression.latent_shape),
        "compression_ratio": compression.ratio,
        "autoencoder": dry_run(train_autoencoder, AutoencoderConfig(**settings)),
        "denoiser": dry_run(train_denoiser, DenoiserConfig(**settings, vae=str(folder / "vae"))),
    }


if __name__ == "__main__":
    rows = []
    for preset, resolution in PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure_preset(preset, resolution, Path(folder)))
        print(rows[-1], flush=True)
    write_json(REPORT, {"presets": rows, **machine_figures()})
