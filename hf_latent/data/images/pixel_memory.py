"""Keep the resized pixels of a small data set in memory."""

from typing import Any

import numpy as np


class PixelMemory:
    """Pixels of many images in one array, filled as they come; a pickled copy starts empty.

    Args:
        length: number of images.
        shape: `(H, W, C)` of each.
    """

    def __init__(self, length: int, shape: tuple[int, int, int]):
        """Remember the size; the array is allocated with the first image."""
        self._shape = (length, *shape)
        self._filled = np.zeros(length, bool)
        self._pixels: np.ndarray | None = None

    def get(self, index: int) -> np.ndarray | None:
        """Return the pixels of an image, or None if they are not here."""
        return self._pixels[index] if self._pixels is not None and self._filled[index] else None

    def put(self, index: int, array: np.ndarray) -> None:
        """Keep the pixels of an image, unless its bit depth is not that of the first one."""
        if self._pixels is None:
            self._pixels = np.empty(self._shape, array.dtype)
        if array.dtype == self._pixels.dtype:
            self._pixels[index] = array
            self._filled[index] = True

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the size only: each worker process fills its own."""
        return PixelMemory, (self._shape[0], self._shape[1:])
