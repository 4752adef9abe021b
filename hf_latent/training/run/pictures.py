"""The pictures in a run's folder of samples, of both trainings."""

from pathlib import Path

import torch

from hf_latent.evaluation.pictures import image_grid
from hf_latent.output import replaced_whole
from hf_latent.training.run.accelerator import TrainingConfig

GRID_COLUMNS = 8
MAX_GRID_ROWS = 10


def picture_path(config: TrainingConfig, step: int) -> Path:
    """Return where a step's picture is; there is none of images that no PNG can hold."""
    return Path(config.output_dir) / "samples" / f"step-{step:06d}.png"


def save_picture(images: torch.Tensor, config: TrainingConfig, step: int) -> None:
    """Save a step's picture in the run's folder.

    Args:
        images: `(B, C, H, W)` float in [-1, 1]; C is 1, 3 or 4.
        config: the run's folder.
        step: the picture's number.
    """
    with replaced_whole(picture_path(config, step)) as temporary:
        image_grid(images / 2 + 0.5, GRID_COLUMNS).save(temporary)
