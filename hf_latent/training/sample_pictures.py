"""The pictures in a run's folder of samples, of both trainings."""

from pathlib import Path

import torch

from hf_latent.evaluation.pictures import image_grid
from hf_latent.output import replaced_whole
from hf_latent.training.run import TrainingConfig

GRID_COLUMNS = 8
MAX_GRID_ROWS = 10


def save_picture(images: torch.Tensor, config: TrainingConfig, step: int) -> None:
    """Save a step's picture in the run's folder.

    Args:
        images: `(B, C, H, W)` float in [-1, 1]; C is 1, 3 or 4.
        config: the run's folder.
        step: the picture's number.
    """
    path = Path(config.output_dir) / "samples" / f"step-{step:06d}.png"
    with replaced_whole(path) as temporary:
        image_grid(images / 2 + 0.5, GRID_COLUMNS).save(temporary)
