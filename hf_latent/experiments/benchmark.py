"""How fast the trainings are against the least that they could do, both sides in one run."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from hf_latent.command import check_ranges
from hf_latent.data.images import open_images
from hf_latent.evaluation.machine import describe_machine
from hf_latent.experiments.quickstart import IMAGES
from hf_latent.output import check_output_dir, write_json
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.losses import kl_per_latent_value, reconstruction_loss
from hf_latent.training.trainable_autoencoder import TrainableAutoencoder, start_autoencoder

# The model and loss of the released fashion-mnist-f4.
RELEASED: dict[str, Any] = {"block_out_channels": [16, 32, 64], "reconstruction_loss": "l2"}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure a performance ratio, its two sides in turn, and write it to bench.json.

    Attributes:
        what: autoencoder: the training of fashion-mnist-f4 (data, clipping, averaging and logging
            included, validation and checkpoints not) against a bare loop of the same forward,
            backward and optimizer on tensors in memory.
        output_dir: for bench.json.
        overwrite_output_dir: accept a folder with files in it.
        rounds: how often each side runs.
        steps: of each side in a round.
        train_batch_size: images a step.
    """

    what: Literal["autoencoder"]
    output_dir: str = "hf-latent-bench"
    overwrite_output_dir: bool = False
    rounds: int = 7
    steps: int = 40
    train_batch_size: int = 32

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        check_ranges(self, positive=("rounds", "steps", "train_batch_size"))


def bare_images_per_second(config: AutoencoderConfig, images: torch.Tensor) -> float:
    """Time the least that an autoencoder's training must do.

    Args:
        config: model, loss and optimizer are taken from it, and the number of steps.
        images: `(N, C, H, W)` float in [-1, 1], N at least a batch.

    Returns:
        Images a second.
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


def run_benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run both sides in turn, and write bench.json.

    Args:
        config: what, and how long.

    Returns:
        The content of bench.json.

    Raises:
        UserError: if the folder cannot be written.
    """
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    with tempfile.TemporaryDirectory() as folder:
        settings = AutoencoderConfig(
            **IMAGES,
            **RELEASED,
            output_dir=str(Path(folder) / "run"),
            overwrite_output_dir=True,
            train_batch_size=config.train_batch_size,
            max_train_steps=config.steps,
            max_train_samples=2000,
            validation_steps=config.steps,
            checkpointing_steps=None,
            max_validation_samples=config.train_batch_size,
        )
        splits = open_images(settings)
        images = torch.stack([splits.train[i]["images"] for i in range(len(splits.train))])
        trainer, bare = [], []
        for turn in range(config.rounds + 1):
            sides = {
                "trainer": lambda: train_autoencoder(settings, splits).images_per_second,
                "bare": lambda: bare_images_per_second(settings, images),
            }
            # Each side comes first in every other round.
            rates = {name: sides[name]() for name in sorted(sides, reverse=turn % 2 == 0)}
            if turn:  # the first is warm-up
                trainer.append(rates["trainer"])
                bare.append(rates["bare"])
    report = {
        "what": config.what,
        "ratio_median": median(a / b for a, b in zip(trainer, bare, strict=True)),
        "trainer_images_per_second_median": median(trainer),
        "bare_images_per_second_median": median(bare),
        "trainer_images_per_second": trainer,
        "bare_images_per_second": bare,
        "rounds": config.rounds,
        "steps": config.steps,
        "train_batch_size": config.train_batch_size,
        **describe_machine(),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "bench.json", report)
    print(f"the trainer runs at {report['ratio_median']:.3f} of the bare loop's rate")
    return report
