"""Compare preset base-fast with base: write docs/reports/decoders.json.

    python train_scripts/release/decoder_figures.py DATA RUNS

Both are trained on the same batches of 32x32 images, at half of their widths, so minutes suffice.
DATA has the images; RUNS is the folder of the trainings. A finished training is not repeated.
"""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_latent.evaluation.costs import Costs
from hf_latent.experiments.benchmark.space import (
    AUTOENCODERS,
    DENOISERS,
    FACTOR,
    LATENT_CHANNELS,
    Side,
)
from hf_latent.models import presets
from hf_latent.models.presets import Preset, create_autoencoder
from hf_latent.output import read_json, write_json
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig

ROOT = Path(__file__).parents[2]
RESOLUTION = 256
TRAININGS: list[tuple[Preset, int]] = [("base", 800), ("base-fast", 800)]  # presets and steps
FIGURES = ("max_train_steps", "train_batch_size", "held_out_psnr_db", "held_out_ssim")


def count_decoder(preset: Preset) -> float:
    """Count operations of decoding an image, in 10^9."""
    size = RESOLUTION // FACTOR
    with FakeTensorMode(), torch.no_grad():
        vae = create_autoencoder(preset, 3, RESOLUTION, latent_channels=LATENT_CHANNELS)
        latents = torch.empty(1, LATENT_CHANNELS, size, size)
        with Costs() as costs:
            vae.decode(latents)
    return costs.operations / 1e9


def count_steps() -> dict[str, dict[str, float]]:
    """Count operations of a step of each denoiser of `bench space`, in 10^9."""
    size, device = RESOLUTION // FACTOR, torch.device("cpu")
    shapes = {"pixels": (1, 3, RESOLUTION, RESOLUTION), "latents": (1, LATENT_CHANNELS, size, size)}
    counted: dict[str, dict[str, float]] = {name: {} for name in DENOISERS}
    for name, spaces in counted.items():
        for space, shape in shapes.items():
            with FakeTensorMode():
                side = Side(name, shape, device)
                with Costs() as costs:
                    side.step()
            spaces[space] = costs.operations / 1e9
    return counted


def train_half(preset: Preset, steps: int, data: str, runs: Path) -> dict[str, Any]:
    """Train a preset at half of its widths; return figures of its report."""
    run = runs / f"{preset}-{steps}"
    full = presets.AUTOENCODERS[preset]
    half = {"block_out_channels": tuple(width // 2 for width in full["block_out_channels"])}
    if not (run / "report.json").is_file():
        config = AutoencoderConfig(
            preset=preset,
            data=data,
            output_dir=str(run),
            reconstruction_loss="l2",
            kl_weight=3e-4,
            learning_rate=2e-3,
            train_batch_size=16,
            adam_weight_decay=1e-2,
            max_train_steps=steps,
            validation_steps=250,
            max_validation_samples=400,
            fold_samples=512,
            checkpointing_steps=None,
        )
        with patch.dict(presets.AUTOENCODERS, {preset: full | half}):
            train_autoencoder(config)
    report = read_json(run / "report.json")
    return {"preset": preset} | half | {name: report[name] for name in FIGURES}


if __name__ == "__main__":
    data, runs = sys.argv[1:]
    report = {
        "step_gflops": count_steps(),
        "decoder_gflops": {preset: count_decoder(preset) for preset in AUTOENCODERS},
        "half": [train_half(*training, data, Path(runs)) for training in TRAININGS],
    }
    write_json(ROOT / "docs" / "reports" / "decoders.json", report)
