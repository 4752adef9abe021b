"""The images of one split as `(C, H, W)` tensors in [-1, 1]."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_latent.data.images.config import (
    ImagesConfig,
    describe_values,
    parse_resolution,
    parse_value_range,
)
from hf_latent.data.images.flips import is_flipped
from hf_latent.data.images.held_out import fingerprint, read_labels
from hf_latent.data.images.pixels import (
    Box,
    decode_image,
    fit,
    padded_box,
    stretch,
    to_channels,
    to_tensors,
    to_uint8,
)
from hf_latent.pipeline.conditions import Conditions

# Part of the keys of random draws; never 0, because numpy's SeedSequence ignores trailing zeros.
CROP, SUBSET = 2, 3


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Return the places of `count` evenly spaced ones of `length`, or of all if there are fewer."""
    count = min(length, count)
    return np.arange(count) * length // count


@dataclass(frozen=True, eq=False)
class ImageDataset(torch.utils.data.Dataset):
    """Images of one split as tensors. A pickled copy is small: each worker reads from the disk.

    Attributes:
        dataset: columns `image` (`Image(decode=False)`) and, if there are labels, `label`.
        rows: `(N,)` int64, the rows to use, in this order.
        hashes: `(N,)` ASCII bytes, the rows' content hashes; a pickled copy has none.
        config: says resize mode, crop, flip, seed and size.
        channels: 1, 3 or 4 of pictures, any number of measured images.
        keep_in_memory: keep decoded and resized pixels, `N * H * W * C` bytes (twice that for
            16 bits). Random crops are not kept.
        at_random: draw crops and flips, if the configuration has them.
        mirrored: mirror every image, unless flips are drawn.
        is_measured: whether the images are measured ones, which have a value range.
        caption_ids: `(N, K)` int64, see `CaptionTexts.number`; None without captions.
    """

    dataset: Dataset
    rows: np.ndarray
    hashes: np.ndarray
    config: ImagesConfig
    channels: int
    keep_in_memory: bool = False
    at_random: bool = True
    mirrored: bool = False
    is_measured: bool = False
    caption_ids: torch.Tensor | None = None
    _memory: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave hashes and pixels out of a pickle."""
        return {**self.__dict__, "hashes": None, "_memory": {}}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return one image.

        Args:
            key: `index` (epoch 0) or `(epoch, index)`. Random crops and flips depend on these and
                the seed, not on the order of reading or the workers.

        Returns:
            `images`: `(C, H, W)` float32 in [-1, 1], and the image's `conditions`.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
        """Return several images, faster than one by one; a DataLoader calls this for a batch."""
        images, indices = self._read(keys)
        batch = {"images": images, **self.conditions(indices)}
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]

    def conditions(self, indices: np.ndarray | range) -> Conditions:
        """Return `class_labels` `(n,)` and `caption_ids` `(n, K)` int64, if the data has them."""
        known = {"class_labels": self.labels, "caption_ids": self.caption_ids}
        return {name: x[indices] for name, x in known.items() if x is not None}

    def _read(self, keys: Sequence[int | tuple[int, int]]) -> tuple[torch.Tensor, np.ndarray]:
        """Return images by their keys, and their indices (a negative index counts from the end)."""
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        pairs = [(epoch, range(len(self))[index]) for epoch, index in pairs]
        epochs, indices = np.array(pairs, np.int64).reshape(-1, 2).T
        arrays = self._pixels(pairs)
        for place in np.flatnonzero(self.is_mirrored(epochs, indices)):
            arrays[place] = arrays[place][:, ::-1]
        return to_tensors(arrays), indices

    def _pixels(self, keys: list[tuple[int, int]]) -> list[np.ndarray]:
        """Return `(H, W, C)` uint8 or uint16 pixels before any flip, by (epoch, index)."""
        config, (_, height, width) = self.config, self.image_shape
        is_random = self.at_random and config.crop == "random" and config.resize_mode == "crop"
        if not is_random:  # every epoch has the same image
            keys = [(0, index) for _, index in keys]
        arrays = self._memory if self.keep_in_memory and not is_random else {}
        missing = sorted(set(keys) - arrays.keys())
        # Read all rows in one call, because a call takes longer than a small image.
        rows = self.rows[[index for _, index in missing]].tolist()
        encoded = self.dataset[rows]["image"] if rows else []
        for key, image in zip(missing, encoded, strict=True):
            generator = np.random.default_rng((config.seed, *key, CROP)) if is_random else None
            pairs, array = parse_value_range(config.value_range), self._decode(image)
            if self.is_measured:  # to_channels drops the opaque alpha of a picture among them
                array = stretch(to_channels(array, self.channels), pairs, is_measured=True)
            else:
                array = to_channels(stretch(array, pairs), self.channels)
            # Copy, because a view of a crop would keep the whole image in memory.
            arrays[key] = fit(array, height, width, config.resize_mode, generator).copy()
        return [arrays[key] for key in keys]

    def _decode(self, image: dict[str, Any]) -> np.ndarray:
        config, encoded = self.config, image["bytes"] or image["path"]
        how = config.max_image_pixels, config.color_profile, config.channels
        return decode_image(encoded, *how)

    def is_mirrored(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return which images are mirrored in which epochs, `(n,)` bool for `(n,)` int64 each."""
        if not (self.at_random and self.config.horizontal_flip):
            return np.full(len(indices), self.mirrored)
        return is_flipped(self.config.seed, epochs, indices, len(self))

    def view(self, mirrored: bool) -> "ImageDataset":
        """Return the same images without random crops and flips; all or none are mirrored."""
        return replace(self, at_random=False, mirrored=mirrored)

    def subset(self, places: np.ndarray) -> "ImageDataset":
        """Return the images at some places `(n,)` int64, in that order."""
        captions = None if self.caption_ids is None else self.caption_ids[places]
        chosen = {"rows": self.rows[places], "hashes": self.hashes[places], "caption_ids": captions}
        return replace(self, **chosen, _memory={})

    def evenly_spaced(self, count: int) -> "ImageDataset":
        """Return `count` images, or all if there are fewer, without random crops and flips.

        Folders are sorted by class, so the first images may all have the same class.
        """
        view = self.view(self.mirrored)
        return view if count >= len(self) else view.subset(evenly_spaced(len(self), count))

    def read(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Read images `(n,)` int64 (None: all) as a tensor `(n, C, H, W)` float32 in [-1, 1]."""
        return self._read(range(len(self)) if rows is None else rows.tolist())[0]

    def read_uint8(self, rows: torch.Tensor) -> torch.Tensor:
        """Read images `(n,)` int64 as a tensor `(n, C, H, W)` uint8."""
        return to_uint8(self.read(rows))

    def unpadded_box(self) -> Box | None:
        """Decode every image; return the box inside the padding, None if images differ in it."""
        if self.config.resize_mode != "pad":
            return None
        rows = self.rows.tolist()
        sizes = {self._decode(self.dataset[row]["image"]).shape[:2] for row in rows}
        if len(sizes) > 1:
            return None
        image_height, image_width = sizes.pop()
        _, height, width = self.image_shape
        box = padded_box(image_height, image_width, height, width)
        return None if (box.height, box.width) == (height, width) else box

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        return self.channels, *parse_resolution(self.config.resolution)

    @cached_property
    def labels(self) -> torch.Tensor | None:
        """Class labels `(N,)` int64; None without labels."""
        labels = read_labels(self.dataset, self.rows)
        return None if labels is None else torch.from_numpy(labels)

    @property
    def preprocessing(self) -> str:
        """One line that says how decoded images become tensors."""
        channels, height, width = self.image_shape
        size = f"{self.config.resize_mode} to {height}x{width}, {channels} channels"
        return size + describe_values(self.config) + (", mirrored" if self.mirrored else "")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the set of images, in any order."""
        return fingerprint(self.hashes)

    @property
    def exact_duplicates(self) -> int:
        """Number of images with the same pixels as an earlier one."""
        return len(self.hashes) - len(np.unique(self.hashes))

    @property
    def identity(self) -> str:
        """SHA-256 of the preprocessing and of the images' contents in their order.

        If it is equal, two data sets without random crops and flips have equal tensors.
        """
        digest = hashlib.sha256(self.preprocessing.encode())
        digest.update(b"\n".join(self.hashes.tolist()))
        return digest.hexdigest()
