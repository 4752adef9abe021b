"""The pictures in a run's folder `samples`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from hf_latent.evaluation.pictures import image_grid
from hf_latent.output import replaced_whole

GRID_COLUMNS = 8
MAX_GRID_ROWS = 10


def picture_path(output_dir: Path, step: int) -> Path:
    """Return the path of a step's picture."""
    return output_dir / "samples" / f"step-{step:06d}.png"


def save_grid(
    images: torch.Tensor, path: Path, group: int | None = None, shown: Sequence[int] | None = None
) -> None:
    """Save images as a grid in a PNG file.

    Args:
        images: `(B, C, H, W)` float in [-1, 1].
        path: as `picture_path` returns.
        group: number of neighbouring images that belong together.
        shown: as of `image_grid`.
    """
    with replaced_whole(path) as temporary:
        image_grid(images / 2 + 0.5, GRID_COLUMNS, group=group, shown=shown).save(temporary)
