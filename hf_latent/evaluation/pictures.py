"""Pictures of images in rows and columns."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from hf_latent.output import replaced_whole

MINIMUM_TILE = 64
LABEL_WIDTH, MOST_LABEL_WIDTH = 96, 288  # longer labels widen it, up to the latter
HEADING_HEIGHT, FONT_SIZE, GAP = 20, 12, 8  # pixels


def composite(images: torch.Tensor, background: float, is_measured: bool = False) -> torch.Tensor:
    """Composite RGBA images on a plain background; return other images unchanged.

    Args:
        images: `(B, C, H, W)` float in [0, 1]; four channels are RGBA with straight alpha.
        background: its grey level, in [0, 1].
        is_measured: whether four channels are measurements, not RGBA.
    """
    if images.shape[1] != 4 or is_measured:
        return images
    colour, alpha = images[:, :3], images[:, 3:]
    return colour * alpha + background * (1 - alpha)


def to_picture(images: torch.Tensor, shown: Sequence[int] | None) -> torch.Tensor:
    """Return the picture of images: what every RGB-only measure sees.

    Args:
        images: `(B, C, H, W)` float in [0, 1].
        shown: as `decode.shown_channels` returns; None: RGBA is composited on white.

    Returns:
        `(B, 1, H, W)` or `(B, 3, H, W)` float in [0, 1].
    """
    return composite(images, 1.0) if shown is None else images[:, list(shown)]


def text_width(text: str) -> float:
    """Return the width of a line of text, in pixels."""
    return ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text, font_size=FONT_SIZE)


def cut_label(label: str) -> str:
    """Return a label as one line, cut to what fits `MOST_LABEL_WIDTH`."""
    label, most = " ".join(label.split()), MOST_LABEL_WIDTH - 2 * GAP
    if text_width(label) <= most:
        return label

    def width(length: int) -> int:
        return math.ceil(text_width(f"{label[:length]}…"))

    return f"{label[: bisect_right(range(len(label)), most, key=width) - 1]}…"


def image_grid(
    images: torch.Tensor,
    columns: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    group: int | None = None,
    shown: Sequence[int] | None = None,
) -> Image.Image:
    """Arrange images in rows; enlarge small ones by a whole factor to at least 64 pixels.

    Args:
        images: `(B, C, H, W)` float in [0, 1]. The last row may be short.
        columns: images per row.
        row_labels: a text at the left of each row; a long one is cut.
        column_labels: a text above each column.
        group: the number of neighbouring columns that belong together; a white gap follows each.
        shown: as of `to_picture`.

    Returns:
        One RGB picture; transparent pixels are shown on white.
    """
    images = to_picture(images.detach().float().cpu().clamp(0, 1), shown)
    scale = max(1, -(-MINIMUM_TILE // min(images.shape[2:])))
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    height, width = images.shape[2:]
    row_labels = [cut_label(label) for label in row_labels]
    lengths = [text_width(label) for label in row_labels]
    left = max(LABEL_WIDTH, int(max(lengths)) + 2 * GAP) if lengths else 0
    top = HEADING_HEIGHT if column_labels else 0
    lefts = [left + x * width + x // (group or columns) * GAP for x in range(columns)]
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (lefts[-1] + width, top + rows * height), "white")
    draw = ImageDraw.Draw(picture)
    tiles = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(images))
    for i, tile in enumerate(tiles):
        picture.paste(tile, (lefts[i % columns], top + i // columns * height))
    text: dict[str, Any] = {"fill": "black", "font_size": FONT_SIZE}
    for row, label in enumerate(row_labels):
        draw.text((GAP, top + row * height + height // 2), label, anchor="lm", **text)
    for x, label in zip(lefts, column_labels, strict=False):
        draw.text((x + width // 2, top // 2), label, anchor="mm", **text)
    return picture


def labelled_rows(
    images: torch.Tensor,
    class_labels: list[int],
    names: dict[int, str],
    shown: Sequence[int] | None = None,
) -> Image.Image:
    """Arrange images in one row per class label.

    Args:
        images: `(B, C, H, W)` float in [0, 1]; image i has `class_labels[i % len(class_labels)]`.
        class_labels: one per row.
        names: by label.
        shown: as of `to_picture`.

    Returns:
        The picture; a row that is one image shorter ends with a white tile.
    """
    rows = len(class_labels)
    columns = -(-len(images) // rows)
    blank = images.new_ones(rows * columns - len(images), *images.shape[1:])
    images = torch.cat([images, blank]).unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1)
    row_labels = [names.get(label, str(label)) for label in class_labels]
    return image_grid(images, columns, row_labels, shown=shown)


def save_picture(path: Path, picture: Image.Image) -> None:
    """Save a picture whole, in the format of its suffix."""
    with replaced_whole(path) as temporary:
        picture.save(temporary)


def interleave(*batches: torch.Tensor) -> torch.Tensor:
    """Put the images of batches of one shape in turn: the first of each, the second of each, ..."""
    return torch.stack(batches, dim=1).flatten(0, 1)
