"""The images of one split as `(C, H, W)` tensors in [-1, 1]."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_latent.data.images.config import ImagesConfig, parse_resolution
from hf_latent.data.images.flips import is_flipped
from hf_latent.data.images.held_out import fingerprint
from hf_latent.data.images.pixel_memory import PixelMemory
from hf_latent.data.images.pixels import (
    Box,
    decode_image,
    fit,
    padded_box,
    to_channels,
    to_tensors,
    to_uint8,
)
from hf_latent.pipeline.conditions import Conditions

# What is drawn; never 0, which numpy's SeedSequence would not tell from nothing.
CROP, SUBSET = 2, 3


class ImageDataset(torch.utils.data.Dataset):
    """Images of one split as tensors. It pickles cheaply, and is read from disk in each worker.

    Args:
        dataset: columns `image` (`Image(decode=False)`) and maybe `label`.
        rows: `(N,)` int64, which rows of it; their order is this data set's order.
        config: resize mode, crop, flip and seed are taken from it, and the size.
        channels: 1, 3 or 4.
        keep_in_memory: keep the resized pixels once they have been decoded, `N * H * W * C`
            bytes, twice that with 16-bit grey. Ignored with a random crop.
        mirrored: mirror every image.
        hashes: `(N,)`, the rows' content hashes; None: the images' `identity` is not asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        config: ImagesConfig,
        channels: int,
        keep_in_memory: bool = False,
        mirrored: bool = False,
        hashes: np.ndarray | None = None,
    ):
        """Open the data set; nothing is decoded yet."""
        self.image_shape = (channels, *parse_resolution(config.resolution))
        self._rows = rows
        self._config = config
        self._mirrored = mirrored
        self.hashes = hashes
        self._encoded = dataset.select_columns("image")
        self._random_crop = config.crop == "random" and config.resize_mode == "crop"
        self._labels: np.ndarray | None = None
        if "label" in dataset.column_names:
            self._labels = dataset.data.column("label").to_numpy()[rows]
        keep = keep_in_memory and not self._random_crop
        self._memory = PixelMemory(len(rows), (*self.image_shape[1:], channels)) if keep else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hashes out of a pickle: no worker needs them, and there are many."""
        return {**self.__dict__, "hashes": None}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return one image.

        Args:
            key: `index`, or `(epoch, index)`; random crops and flips are drawn from the seed and
                these two, so that they depend on neither the order nor the workers.

        Returns:
            `images`: `(C, H, W)` float32 in [-1, 1], and the image's `conditions`.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
        """Return several images, as a DataLoader asks for a batch: faster than one by one."""
        images, indices = self._read(keys)
        batch = {"images": images, **self.conditions(indices)}
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]

    def conditions(self, indices: np.ndarray | range) -> Conditions:
        """Return what a denoiser is told of some images.

        Args:
            indices: `(n,)`.

        Returns:
            Named tensors, the images first: `class_labels` `(n,)` int64, only if the data has
            labels.
        """
        if self._labels is None:
            return {}
        return {"class_labels": torch.from_numpy(self._labels[indices].astype(np.int64))}

    def _read(self, keys: Sequence[int | tuple[int, int]]) -> tuple[torch.Tensor, np.ndarray]:
        """Return images by their keys, and their indices, all from 0 on."""
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        pairs = [(epoch, range(len(self))[index]) for epoch, index in pairs]
        epochs, indices = np.array(pairs, np.int64).reshape(-1, 2).T
        arrays = self._pixels(pairs)
        for place in np.flatnonzero(self.is_mirrored(epochs, indices)):
            arrays[place] = arrays[place][:, ::-1]
        return to_tensors(arrays), indices

    def is_mirrored(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Tell which images are mirrored in which epochs, `(n,)` bool for `(n,)` int64 each."""
        if not self._config.horizontal_flip:
            return np.full(len(indices), self._mirrored)
        return is_flipped(self._config.seed, epochs, indices, len(self))

    def _generator(self, epoch: int, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._config.seed, epoch, index, purpose))

    def evenly_spaced(self, count: int) -> "ImageDataset":
        """Return `count` images, or all where there are fewer, without anything random.

        Evenly spaced, because folders are sorted by class: the first ones may be all of one.
        """
        chosen = self.view(self._mirrored)
        if count >= len(self):
            return chosen
        return chosen.subset(np.arange(count) * len(self) // count)

    def subset(self, places: np.ndarray) -> "ImageDataset":
        """Return the images at some places.

        Args:
            places: `(n,)` int64, in the order that they are to have.
        """
        chosen = object.__new__(ImageDataset)
        chosen.__dict__.update(self.__dict__)
        chosen._rows = self._rows[places]
        if self._labels is not None:
            chosen._labels = self._labels[places]
        if self.hashes is not None:
            chosen.hashes = self.hashes[places]
        if self._memory is not None:
            channels, height, width = self.image_shape
            chosen._memory = PixelMemory(len(places), (height, width, channels))
        return chosen

    def read(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Read images at once.

        Args:
            rows: `(n,)` int64, at least one; None: all.

        Returns:
            `(n, C, H, W)` float32 in [-1, 1].
        """
        numbers = list(range(len(self))) if rows is None else rows.tolist()
        return self._read(numbers)[0]

    def read_uint8(self, rows: torch.Tensor) -> torch.Tensor:
        """Read images at once, as `read`, and round them to 8 bit."""
        return to_uint8(self.read(rows))

    def unpadded_box(self) -> Box | None:
        """Find what padding was put around: one box for all images.

        Every image is decoded for it.

        Returns:
            The box; None without padding, or where the images' own sizes differ.
        """
        if self._config.resize_mode != "pad":
            return None
        sizes = {decode_row(self._encoded, row).shape[:2] for row in self._rows}
        if len(sizes) > 1:
            return None
        ((image_height, image_width),) = sizes
        box = padded_box(image_height, image_width, *self.image_shape[1:])
        return None if (box.height, box.width) == self.image_shape[1:] else box

    @property
    def labels(self) -> torch.Tensor | None:
        """The class labels, `(N,)` int64; None without labels."""
        return self.conditions(range(len(self))).get("class_labels")

    @property
    def preprocessing(self) -> str:
        """What becomes of the decoded images before they are tensors, in one line."""
        channels, height, width = self.image_shape
        mirrored = ", mirrored" if self._mirrored else ""
        return f"{self._config.resize_mode} to {height}x{width}, {channels} channels{mirrored}"

    @property
    def fingerprint(self) -> str:
        """The 16 hexadecimal digits that stand for the images, in whatever order."""
        assert self.hashes is not None, "opened without content hashes"
        return fingerprint(self.hashes)

    @property
    def exact_duplicates(self) -> int:
        """How many images have the same pixels as one before them."""
        assert self.hashes is not None, "opened without content hashes"
        return len(self.hashes) - len(np.unique(self.hashes))

    @property
    def identity(self) -> str:
        """The sha256 of the images' contents in their order and of the preprocessing.

        Two data sets without anything random give equal tensors if it is equal.
        """
        assert self.hashes is not None, "opened without content hashes"
        digest = hashlib.sha256(self.preprocessing.encode())
        digest.update(b"\n".join(self.hashes.tolist()))
        return digest.hexdigest()

    def view(self, mirrored: bool) -> "ImageDataset":
        """Return the same images without anything random, for encoding them once.

        Args:
            mirrored: mirror every image, instead of none.

        Returns:
            the same images in the same order, cropped at the centre.
        """
        view = object.__new__(ImageDataset)
        view.__dict__.update(self.__dict__)
        view._config = replace(self._config, crop="center", horizontal_flip=False)
        view._mirrored = mirrored
        view._random_crop = False
        return view

    def _pixels(self, keys: list[tuple[int, int]]) -> list[np.ndarray]:
        """Return `(H, W, C)` uint8 or uint16 pixels before any flip, by (epoch, index)."""
        kept: list[np.ndarray | None] = [None] * len(keys)
        if self._memory is not None:
            kept = [self._memory.get(index) for _, index in keys]
        missing = [place for place, array in enumerate(kept) if array is None]
        channels, height, width = self.image_shape
        # All rows in one call: a call takes longer than a small image.
        rows = [int(self._rows[keys[place][1]]) for place in missing]
        encoded = self._encoded[rows]["image"] if rows else []
        for place, image in zip(missing, encoded, strict=True):
            generator = self._generator(*keys[place], CROP) if self._random_crop else None
            array = to_channels(decode_image(image["bytes"] or image["path"]), channels)
            array = fit(array, height, width, self._config.resize_mode, generator)
            if self._memory is not None:
                self._memory.put(keys[place][1], array)
            kept[place] = array
        return [array for array in kept if array is not None]


def decode_row(dataset: Dataset, row: int) -> np.ndarray:
    """Decode the image in one row of a data set with a column `image` (`Image(decode=False)`)."""
    encoded = dataset[int(row)]["image"]
    return decode_image(encoded["bytes"] or encoded["path"])
