"""The pictures in a run's folder of samples, of both trainings."""

from pathlib import Path

import torch

from hf_latent.evaluation.pictures import image_grid
from hf_latent.output import replaced_whole

GRID_COLUMNS = 8
MAX_GRID_ROWS = 10


def picture_path(output_dir: Path, step: int) -> Path:
    """Return where a step's picture is; there is none of images that no PNG can hold."""
    return output_dir / "samples" / f"step-{step:06d}.png"


def save_picture(images: torch.Tensor, path: Path, group: int | None = None) -> None:
    """Save a step's picture, unless no PNG can hold it.

    Args:
        images: `(B, C, H, W)` float in [-1, 1].
        path: see `picture_path`.
        group: number of neighbouring images that belong together.
    """
    if images.shape[1] not in (1, 3, 4):
        return
    with replaced_whole(path) as temporary:
        image_grid(images / 2 + 0.5, GRID_COLUMNS, group=group).save(temporary)
