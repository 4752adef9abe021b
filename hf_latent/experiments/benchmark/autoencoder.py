"""Speed of an autoencoder's training, compared with a bare loop."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_latent.data.images.open import open_images
from hf_latent.experiments.benchmark.benchmark import (
    TrainingBenchmarkConfig,
    alternate,
    median_ratio,
    run_benchmark,
)
from hf_latent.experiments.quickstart import IMAGES
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.losses import kl_per_latent_value, reconstruction_loss
from hf_latent.training.start_autoencoder import TrainableAutoencoder, start_autoencoder

# The model and loss of the released fashion-mnist-f4.
RELEASED: dict[str, Any] = {"block_out_channels": [16, 32, 64], "reconstruction_loss": "l2"}


@dataclass(frozen=True, kw_only=True)
class AutoencoderBenchmarkConfig(TrainingBenchmarkConfig):
    """Compare the training of an autoencoder with a bare loop, and write bench.json.

    The training is that of fashion-mnist-f4 with data, clipping, averaging and logging, without
    validation and checkpoints. The bare loop has the same forward pass, backward pass and
    optimizer, on tensors in memory.
    """


def bare_images_per_second(config: AutoencoderConfig, images: torch.Tensor) -> float:
    """Return the images a second of a bare loop: forward, backward and optimizer.

    Args:
        config: the model, the loss, the optimizer and the number of steps.
        images: `(N, C, H, W)` float in [-1, 1], N at least a batch.
    """
    vae = start_autoencoder(config, tuple(images.shape[1:]))  # type: ignore[arg-type]
    model = TrainableAutoencoder(vae)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    rows = torch.arange(config.train_batch_size)
    with torch.no_grad():
        noise = torch.randn_like(vae.encode(images[rows]).latent_dist.mean)
    start = time.perf_counter()
    for step in range(config.max_train_steps):
        batch = images[(rows + step * len(rows)) % len(images)]
        reconstructions, mean, logvar = model(batch, noise)
        loss = reconstruction_loss(reconstructions, batch, config.reconstruction_loss)
        (loss + config.kl_weight * kl_per_latent_value(mean, logvar)).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    return config.max_train_steps * len(rows) / seconds


def benchmark_autoencoder(config: AutoencoderBenchmarkConfig) -> dict[str, Any]:
    """Run the training and the bare loop alternately; return figures for bench.json."""
    with tempfile.TemporaryDirectory() as folder:
        settings = AutoencoderConfig(
            **IMAGES,
            **RELEASED,
            **config.training_settings(Path(folder) / "run"),
            max_train_samples=2000,
        )
        splits = open_images(settings)
        images = splits.train.read()
        rates = alternate(
            {
                "trainer": lambda: train_autoencoder(settings, splits).images_per_second,
                "bare": lambda: bare_images_per_second(settings, images),
            },
            config.rounds,
        )
    ratio = median_ratio(rates["trainer"], rates["bare"])
    print(f"the trainer runs at {ratio:.3f} of the bare loop's rate")
    return {
        "ratio_median": ratio,
        "trainer_images_per_second_median": median(rates["trainer"]),
        "bare_images_per_second_median": median(rates["bare"]),
        "trainer_images_per_second": rates["trainer"],
        "bare_images_per_second": rates["bare"],
        "rounds": config.rounds,
        "steps": config.steps,
        "train_batch_size": config.train_batch_size,
    }


def run(config: AutoencoderBenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json; return its content."""
    return run_benchmark(config, "autoencoder", benchmark_autoencoder)
