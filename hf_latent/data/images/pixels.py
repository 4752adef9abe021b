"""Decode any image, change its channels, fit it to a size, and map it to [-1, 1].

    file --decode_image--> --stretch--> --to_channels--> --fit--> array --to_tensors--> tensor

An array is `(H, W, C)`, uint8 or uint16, or before `stretch` float32. C = 1 (grey), 2 (grey,
alpha), 3 (RGB) or 4 (RGBA) in a picture; a measured image, see `measured.py`, has any number of
channels, and none is alpha. Of pictures only grey ones have more than 8 bits: Pillow reads 16-bit
colour as 8-bit.
"""

import io
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin

from hf_latent.data.images.colour import to_srgb
from hf_latent.data.images.config import MAX_IMAGE_PIXELS
from hf_latent.data.images.formats import FORMATS
from hf_latent.data.images.measured import read_measured

# Most bytes of text in a PNG: image generators store their workflow, editors their history.
MAX_TEXT_BYTES = 2**27
# ITU-R 601-2 luma in 1/65536, as in Pillow's own conversion. The sum of 65536 keeps 16-bit pixels
# within 32 bits.
LUMA = np.array([19595, 38470, 7471], np.uint32)
_LIMITS = threading.Lock()


class DecodedImage(NamedTuple):
    """An image, and what its file says of it.

    Attributes:
        array: `(H, W, C)`, as `decode_image` returns.
        mode: Pillow's name of the pixels' format in the file, such as RGB, L, P or I;16; of a
            measured image "".
        frames: number of pages or frames in the file; the first one is decoded.
        profile: what was done with the colour profile, as in `to_srgb`; "" without one.
        dtype: of the values in the file, such as uint16.
        is_measured: whether the image is a measured one.
    """

    array: np.ndarray
    mode: str
    frames: int
    profile: str
    dtype: str
    is_measured: bool


def decode_image(
    encoded: bytes | str,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    color_profile: Literal["convert", "ignore"] = "convert",
    channels: int | None = None,
) -> np.ndarray:
    """Decode one image, upright (EXIF orientation applied).

    Args:
        encoded: bytes or path of an image file in one of `FORMATS`, or as in `read_measured`.
        max_image_pixels: a larger image is not decoded.
        color_profile: `convert` colours to sRGB if the file has a profile, or `ignore` the profile.
        channels: as in `read_measured`.

    Returns:
        `(H, W, C)` uint8, or for grey of more bits and measured images uint16; float32 for pixels
        without a fixed range (floating point, or 32-bit integers outside 0 to 65535). The
        transparency of a palette or a colour key becomes alpha. An animation gives its first frame.

    Raises:
        ValueError: if a pixel is not finite, or the axes of a measured image cannot be told.
        Exception: any that the libraries raise for a damaged file, mostly OSError.
    """
    return read_image(encoded, max_image_pixels, color_profile, channels).array


def read_image(
    encoded: bytes | str,
    max_image_pixels: int,
    color_profile: Literal["convert", "ignore"],
    channels: int | None,
) -> DecodedImage:
    """Decode one image as `decode_image` does, and describe it."""
    if (measured := read_measured(encoded, channels, max_image_pixels)) is not None:
        array, dtype, frames = measured
        return DecodedImage(array, "", frames, "", dtype, True)
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with _pillow_limits(max_image_pixels), Image.open(file, formats=FORMATS) as image:
        mode, frames = image.mode, getattr(image, "n_frames", 1)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        dtype = np.asarray(image).dtype.name if mode[0] in "IF" else "uint8"
        array, profile = _to_array(image, color_profile == "convert")
        return DecodedImage(array, mode, frames, profile, dtype, False)


@contextmanager
def _pillow_limits(max_image_pixels: int) -> Iterator[None]:
    """Set Pillow's limits and restore them: they are variables of its modules, for all threads."""
    ours = (
        (Image, "MAX_IMAGE_PIXELS", max_image_pixels),
        (PngImagePlugin, "MAX_TEXT_CHUNK", MAX_TEXT_BYTES),
        (PngImagePlugin, "MAX_TEXT_MEMORY", MAX_TEXT_BYTES),
    )
    with _LIMITS:
        before = [(module, name, getattr(module, name)) for module, name, _ in ours]
        try:
            for module, name, limit in ours:
                setattr(module, name, limit)
            yield
        finally:
            for module, name, limit in before:
                setattr(module, name, limit)


def _to_array(image: Image.Image, convert_profile: bool) -> tuple[np.ndarray, str]:
    """Return the pixels, and what was done with the colour profile."""
    if image.mode[0] in "IF":  # grey of 16 or 32 bits
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("a pixel is not finite")
        fits = image.mode != "F" and values.min() >= 0 and values.max() <= 65535
        return values.astype(np.uint16 if fits else np.float32)[:, :, None], ""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        mode += "A"
    profile, use = image.info.get("icc_profile"), ""
    if profile and convert_profile:
        own = image if image.mode in (mode, "CMYK") else image.convert(mode)
        image, use = to_srgb(own, profile)
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return (array[:, :, None] if array.ndim == 2 else array), use


def stretch(
    array: np.ndarray, value_range: Sequence[tuple[float, float]] | None, is_measured: bool = False
) -> np.ndarray:
    """Map a range of the file's pixel values to black and white, and clip what is outside.

    Args:
        array: `(H, W, C)`, as `decode_image` returns.
        value_range: the values that become black and white, of all channels or of each of the C
            channels; None: those of the array's type.
        is_measured: whether the image is a measured one, which has no alpha.

    Returns:
        `(H, W, C)` uint16, or uint8 with alpha, which stays as it is.
    """
    if value_range is None:
        return array
    low, high = np.array(value_range).T
    has_alpha = not is_measured and array.shape[2] in (2, 4)
    colour, alpha = np.split(array, [array.shape[2] - has_alpha], axis=2)
    dtype = np.uint8 if has_alpha else np.uint16
    width = (high - low).astype(np.float32)
    shares = ((colour.astype(np.float32) - low.astype(np.float32)) / width).clip(0, 1)
    stretched = np.rint(shares * np.iinfo(dtype).max).astype(dtype)
    return np.concatenate([stretched, alpha.astype(dtype)], axis=2)


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
        `(height, width, C)` of the same dtype; 16-bit values keep their precision.
    """
    if box is None and array.shape[:2] == (height, width):
        return array
    if array.dtype == np.uint16 and array.shape[2] > 1:
        # Pillow has no 16-bit mode with several channels. Alpha needs no weights here: 16-bit
        # images have none of their own, and what `to_channels` adds is constant.
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
