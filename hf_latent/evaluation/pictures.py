"""Pictures of images in rows and columns."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole

MINIMUM_TILE = 64
LABEL_WIDTH = 96


def check_picture_channels(model: str, channels: int) -> None:
    """Refuse to draw what no picture can show, before anything long starts.

    Args:
        model: its name, for the message.
        channels: of its images.

    Raises:
        UserError: if they are not 1, 3 or 4.
    """
    if channels not in (1, 3, 4):
        raise UserError(
            f"{model} makes images of {channels} channels, and a picture has 1, 3 or 4: draw them "
            'in Python, with output_type="pt" or "np"'
        )


def image_grid(
    images: torch.Tensor, columns: int, row_labels: Sequence[str] | None = None
) -> Image.Image:
    """Lay images out in rows, small ones enlarged so that a person can see them.

    Args:
        images: `(B, C, H, W)` float in [0, 1]; C is 1, 3 or 4. The last row may be short.
        columns: images a row.
        row_labels: a text for each row, at its left.

    Returns:
        One picture, its pixels whole multiples of the images' own; RGB where there are labels.
    """
    missing = -len(images) % columns
    blank = torch.ones(missing, *images.shape[1:], dtype=images.dtype)
    images = torch.cat([images.detach().float().cpu().clamp(0, 1), blank])
    scale = max(1, -(-MINIMUM_TILE // min(images.shape[2:])))
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    tiles = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(images))
    rows = len(tiles) // columns
    # make_image_grid pastes onto RGB, so a grid of RGBA images is put on white here.
    tiles = [_on_white(tile) for tile in tiles]
    grid = make_image_grid(tiles, rows, columns)
    if row_labels is None:
        return grid
    labelled = Image.new("RGB", (grid.width + LABEL_WIDTH, grid.height), "white")
    labelled.paste(grid, (LABEL_WIDTH, 0))
    draw, height = ImageDraw.Draw(labelled), grid.height // rows
    for row, label in enumerate(row_labels):
        draw.text((6, row * height + height // 2), label, fill="black", anchor="lm")
    return labelled


def labelled_rows(
    images: torch.Tensor, class_labels: list[int], names: dict[int, str]
) -> Image.Image:
    """Lay images whose labels were taken in turn out with one row a label.

    Args:
        images: `(B, C, H, W)` float in [0, 1]; image i has `class_labels[i % len(class_labels)]`.
        class_labels: a row each.
        names: the classes' names by label.

    Returns:
        The picture; rows that are one image short end in white.
    """
    rows = len(class_labels)
    columns = -(-len(images) // rows)
    blank = images.new_ones(rows * columns - len(images), *images.shape[1:])
    images = torch.cat([images, blank]).unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1)
    return image_grid(images, columns, [names.get(label, str(label)) for label in class_labels])


def save_picture(path: Path, picture: Image.Image) -> None:
    """Save a picture whole, in the format of its suffix."""
    with replaced_whole(path) as temporary:
        picture.save(temporary)


def interleave(*batches: torch.Tensor) -> torch.Tensor:
    """Put the images of several batches in turn: first of each, second of each, ...

    Args:
        batches: `(B, C, H, W)` each, of one shape.

    Returns:
        `(B * len(batches), C, H, W)`.
    """
    return torch.stack(batches, dim=1).flatten(0, 1)


def _on_white(tile: Image.Image) -> Image.Image:
    if tile.mode != "RGBA":
        return tile.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", tile.size, "white"), tile).convert("RGB")
