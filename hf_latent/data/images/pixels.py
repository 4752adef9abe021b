"""Decode any image, change its channels, fit it to a size, and map it to [-1, 1].

    encoded image --decode_image--> --to_channels--> --fit--> array --to_tensors--> tensor

An array is `(H, W, C)`, uint8 or uint16, with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
Only grey images have more than 8 bits: Pillow reads 16-bit colour as 8-bit.
"""

import io
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from hf_latent.data.images.formats import FORMATS

# ITU-R 601-2 luma in 1/65536, as in Pillow's own conversion. The sum of 65536 keeps 16-bit pixels
# within 32 bits.
LUMA = np.array([19595, 38470, 7471], np.uint32)


def decode_image(encoded: bytes | str) -> np.ndarray:
    """Decode one image, upright (EXIF orientation applied).

    Args:
        encoded: bytes or path of an image file in one of `FORMATS`.

    Returns:
        `(H, W, C)` uint8, or uint16 for 16-bit grey; C is 1, 2, 3 or 4. The transparency of a
        palette or a colour key becomes alpha. An animation gives its first frame.

    Raises:
        ValueError: if the pixels have no fixed range (floating point, or 32-bit integers outside
            0 to 65535).
        Exception: any that Pillow raises for a damaged file, mostly OSError.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with Image.open(file, formats=FORMATS) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_array(image)


def _to_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # grey of 16 or 32 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"32-bit pixels from {values.min()} to {values.max()} do not fit in 16 bits"
            )
        return values.astype(np.uint16)[:, :, None]
    if image.mode == "F":
        raise ValueError("pixels of mode F have no fixed range: save as 8-bit, or as 16-bit grey")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        mode += "A"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[:, :, None] if array.ndim == 2 else array


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Change the number of channels.

    Args:
        array: `(H, W, C)` uint8 or uint16, C = 1, 2, 3 or 4.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Returns:
        `(H, W, channels)` of the same dtype. To drop alpha, the image is composited on white. New
        alpha is opaque. Grey is repeated for colour; the luma of colour becomes grey.
    """
    if array.shape[2] == channels:
        return array
    white = np.iinfo(array.dtype).max
    has_alpha = array.shape[2] in (2, 4)
    colour, alpha = (array[:, :, :-1], array[:, :, -1:]) if has_alpha else (array, None)
    if alpha is not None and channels != 4:
        wide, opacity = colour.astype(np.uint32), alpha.astype(np.uint32)
        total = wide * opacity + white * (white - opacity)
        colour = ((total + white // 2) // white).astype(array.dtype)
    if channels == 1:
        if colour.shape[2] == 3:
            luma = (colour.astype(np.uint32) @ LUMA + 32768) >> 16
            colour = luma.astype(array.dtype)[:, :, None]
        return colour
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    if channels == 3:
        return colour
    if alpha is None:
        alpha = np.full_like(array[:, :, :1], white)
    return np.concatenate([colour, alpha], axis=2)


def resize(
    array: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resample with Lanczos (antialiased when shrinking), colour weighted by its alpha.

    Args:
        array: `(H, W, C)` uint8 or uint16.
        height: in pixels.
        width: in pixels.
        box: left, top, right and bottom of the part to resample; None: all.

    Returns:
        `(height, width, C)` of the same dtype; 16-bit values (grey only) keep their precision.
    """
    if box is None and array.shape[:2] == (height, width):
        return array
    if array.dtype == np.uint16 and array.shape[2] > 1:
        # Pillow has no 16-bit mode with several channels. Alpha needs no weights here: only 16-bit
        # grey without alpha reaches this line, and the alpha added to it is constant.
        planes = np.split(array, array.shape[2], axis=2)
        return np.concatenate([resize(plane, height, width, box) for plane in planes], axis=2)
    # Pillow weights the colour of LA and RGBA by alpha itself.
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box))
    return resized.reshape(height, width, array.shape[2])


def covering_size(image_height: int, image_width: int, height: int, width: int) -> tuple[int, int]:
    """Return the smallest height and width of an image that covers `(height, width)`."""
    scale = max(height / image_height, width / image_width)
    return max(height, round(image_height * scale)), max(width, round(image_width * scale))


def _source_span(length: int, covering: int, start: int, size: int) -> tuple[slice, float, float]:
    """Return the slice of the source that a resized span needs, and the span's ends in it.

    Pillow has the ends in float32, which is too coarse for a whole long source.
    """
    low, high = start * length / covering, (start + size) * length / covering
    reach = 3 * max(1, length / covering) + 1  # Lanczos has three lobes
    first, last = max(0, math.floor(low - reach)), min(length, math.ceil(high + reach))
    return slice(first, last), low - first, high - first


class Box(NamedTuple):
    """A rectangle in an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """Cut the rectangle out of images `(B, C, H, W)`."""
        rows = slice(self.top, self.top + self.height)
        return images[:, :, rows, self.left : self.left + self.width]


def padded_box(image_height: int, image_width: int, height: int, width: int) -> Box:
    """Return where resize mode `pad` puts an image: shrunk to fit if larger, and centred."""
    scale = min(1.0, height / image_height, width / image_width)
    inner_height = max(1, round(image_height * scale))
    inner_width = max(1, round(image_width * scale))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    return Box(top, left, inner_height, inner_width)


def fit(
    array: np.ndarray,
    height: int,
    width: int,
    resize_mode: Literal["crop", "pad"],
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Bring an array `(H, W, C)` to `(height, width, C)`, with the same dtype.

    Args:
        array: uint8 or uint16.
        height: in pixels.
        width: in pixels.
        resize_mode: `crop` covers the size and cuts off the rest; `pad` fits the image inside, on
            zeros (black, or transparent).
        generator: draws the place of the crop; None: the centre.
    """
    image_height, image_width, channels = array.shape
    if resize_mode == "pad":
        box = padded_box(image_height, image_width, height, width)
        padded = np.zeros((height, width, channels), array.dtype)
        rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        padded[rows, columns] = resize(array, box.height, box.width)
        return padded
    covering = covering_size(image_height, image_width, height, width)
    spare_rows, spare_columns = covering[0] - height, covering[1] - width
    if generator is None:
        top, left = spare_rows // 2, spare_columns // 2
    else:
        top = int(generator.integers(spare_rows + 1))
        left = int(generator.integers(spare_columns + 1))
    if array.shape[:2] == covering:
        return array[top : top + height, left : left + width]
    # Resample only what the crop shows, because the covering size of a sliver may be immense.
    rows, upper, lower = _source_span(image_height, covering[0], top, height)
    columns, leftmost, rightmost = _source_span(image_width, covering[1], left, width)
    return resize(array[rows, columns], height, width, (leftmost, upper, rightmost, lower))


def to_tensors(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Map B arrays `(H, W, C)` uint8 or uint16 to `(B, C, H, W)` float32 in [-1, 1]."""
    halves = np.array([np.iinfo(array.dtype).max / 2 for array in arrays], np.float32)
    values = np.stack(arrays).transpose(0, 3, 1, 2).astype(np.float32, order="C")
    values /= halves[:, None, None, None]
    values -= 1
    return torch.from_numpy(values)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Round images `(B, C, H, W)` float in [-1, 1] to uint8, as in a saved file."""
    return ((images.clamp(-1, 1) / 2 + 0.5) * 255).round().byte()
