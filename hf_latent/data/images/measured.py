"""Read images whose channels are measurements, not colours: NumPy files, and many TIFF files.

A file is one image. Its pages or frames are channels only if it says so, or the user does.
"""

import io
import math
from typing import Any, NamedTuple

import numpy as np

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
# Grey values of these types are left to Pillow, which knows their TIFF files well.
READ_BY_PILLOW = ("bool", "uint8", "uint16", "int16", "int32", "uint32", "float32")
PICTURE_CHANNELS = (1, 3, 4)


class MeasuredImage(NamedTuple):
    """The pixels of a measured image.

    Attributes:
        array: `(H, W, C)` uint8, uint16 or float32, C any number.
        dtype: of the pixels in the file, such as int64.
        frames: number of images in the file; the first one is read.
    """

    array: np.ndarray
    dtype: str
    frames: int


def read_measured(
    encoded: bytes | str, channels: int | None, max_image_pixels: int
) -> MeasuredImage | None:
    """Read an image whose channels are measurements.

    Args:
        encoded: bytes or path of a file.
        channels: says which axis of a NumPy array has the channels, and that as many pages of a
            TIFF file are channels; None: a NumPy array must be `(H, W)`, and pages are no channels.
        max_image_pixels: an image of more values is not decoded.

    Returns:
        The image; None for another file, also for a TIFF file that Pillow reads as a picture.

    Raises:
        ValueError: if the axes cannot be told, or a pixel is not finite.
        Exception: any that NumPy or tifffile raises for a damaged file.
    """
    start = encoded[:6] if isinstance(encoded, bytes) else _first_bytes(encoded)
    if start == NPY:
        return _read_npy(encoded, channels, max_image_pixels)
    if not start.startswith(TIFF):
        return None
    try:
        import tifffile
    except ImportError:
        if channels in (None, *PICTURE_CHANNELS):
            return None
        raise ValueError(f"TIFF of {channels} channels needs pip install tifffile") from None
    with io.BytesIO(encoded) if isinstance(encoded, bytes) else _LoneFile(encoded) as file:
        try:
            tiff = tifffile.TiffFile(file, _multifile=False)
        except tifffile.TiffFileError:
            return None  # Pillow says what is wrong
        is_scientific = tiff.is_ome or tiff.is_imagej
        return _read_tiff(tiff, channels, max_image_pixels, is_scientific)


class _LoneFile(io.FileIO):
    """A file without a number, which tifffile takes for one that has no files beside it.

    An image may name others as its parts, anywhere on the disk. (Of OME-TIFF the parts that are not
    opened would be zeros, which `_multifile` prevents.)
    """

    def fileno(self) -> int:
        """Have no number."""
        raise OSError


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(6)


def _read_npy(encoded: bytes | str, channels: int | None, max_image_pixels: int) -> MeasuredImage:
    if isinstance(encoded, bytes):  # as long as the array: nothing is compressed
        array = np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
    else:
        array = np.lib.format.open_memmap(encoded, mode="r")
    _check_size(array.shape, max_image_pixels)
    return _measured(_channels_last(array, channels), 1)


def _channels_last(array: np.ndarray, channels: int | None) -> np.ndarray:
    """Return `(H, W, C)` of `(H, W)`, or of 3 axes: the first or the last has `channels`."""
    if array.ndim == 2:
        return array[:, :, None]
    is_first, is_last = (array.ndim == 3 and array.shape[end] == channels for end in (0, 2))
    if is_first == is_last:
        raise ValueError(
            f"the shape {array.shape} must be (H, W), or (C, H, W) or (H, W, C) with only one "
            f"axis of --channels{'' if channels is None else f' {channels}'}"
        )
    return np.moveaxis(array, 0, 2) if is_first else array


def _read_tiff(
    tiff: Any, channels: int | None, max_image_pixels: int, is_scientific: bool
) -> MeasuredImage | None:
    """Read the first image of the first series; its axes are letters such as TCYX or YXS.

    Colours, and grey of a file that is not `is_scientific` (OME or ImageJ), are left to Pillow.
    """
    series = tiff.series[0]
    axes, shape = series.axes, series.shape
    others = [axis for axis in axes if axis not in "CSYX"]
    own = [axis for axis in "CS" if axis in axes]
    if not own and len(others) == 1 and shape[axes.index(others[0])] == channels:
        own, others = others, []  # the user says so
    if len(own) > 1 or not {"Y", "X"} <= {*axes}:
        raise ValueError(f"its axes {axes} are not those of one image")
    count = shape[axes.index(own[0])] if own else 1
    is_picture = _is_picture(series, own, count) if own else not is_scientific
    if is_picture and series.dtype in READ_BY_PILLOW:
        return None
    array = _read_first(tiff, others, max_image_pixels)
    frames = math.prod(shape[axes.index(axis)] for axis in others)
    axes = "".join(axis for axis in axes if axis not in others)
    array = array.transpose([axes.index(axis) for axis in ("Y", "X", *own)])
    return _measured(array if own else array[:, :, None], frames)


def _read_first(tiff: Any, others: list[str], max_image_pixels: int) -> np.ndarray:
    """Decode the first series at the first place of the axes `others`, and no other pages."""
    series = tiff.series[0]
    shape, page = series.shape, series.keyframe.shape
    ahead = len(shape) - len(page)
    first = tuple(0 if axis in others else slice(None) for axis in series.axes)
    pages = np.arange(math.prod(shape[:ahead])).reshape(shape[:ahead])
    if shape[ahead:] != page or pages.size > len(tiff.pages):  # they are not the file's pages
        _check_size(shape, max_image_pixels)
        return series.asarray()[first]
    pages = pages[first[:ahead]]
    _check_size((*pages.shape, *page), max_image_pixels)
    for found in (tiff.pages[number] for number in pages.flat):
        # tifffile decodes all of it, however few pixels the file says it has.
        if sum(found.databytecounts) > 2 * found.nbytes + 4096 * len(found.databytecounts):
            raise ValueError("its compressed pixels are larger than its pixels")
    array = tiff.asarray(key=pages.flatten().tolist(), series=0).reshape(*pages.shape, *page)
    return array[(..., *first[ahead:])]


def _is_picture(series: Any, own: list[str], count: int) -> bool:
    """Return whether a file calls its samples colours, with or without alpha."""
    if own != ["S"] or count > 4 or series.dtype not in (np.uint8, np.uint16):
        return False
    page = series.keyframe
    return page.photometric.name not in ("MINISBLACK", "MINISWHITE") or any(page.extrasamples)


def _check_size(shape: tuple[int, ...], max_image_pixels: int) -> None:
    if math.prod(shape) > max_image_pixels:
        raise ValueError(f"more pixels in all channels than --max_image_pixels {max_image_pixels}")


def _measured(array: np.ndarray, frames: int) -> MeasuredImage:
    if array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"it has the shape {array.shape} and the type {array.dtype}, not numbers")
    kept = array.dtype.newbyteorder("=")
    if kept == np.bool_:
        kept = np.dtype(np.uint8)
    with np.errstate(over="ignore"):  # a value that float32 does not hold is not finite below
        values = np.ascontiguousarray(array, kept if kept in (np.uint8, np.uint16) else np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a pixel is not finite")
    return MeasuredImage(values, kept.name, frames)
