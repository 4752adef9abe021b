"""Images as training sees them: any source in, `(C, H, W)` tensors in [-1, 1] out."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from datasets import Dataset

from hf_latent.data.held_out import hold_out
from hf_latent.data.images_config import ImagesConfig, parse_resolution
from hf_latent.data.pixel_memory import PixelMemory
from hf_latent.data.pixels import decode_image, fit, to_channels, to_tensor
from hf_latent.data.sources import open_source
from hf_latent.errors import UserError

MEMORY_LIMIT_BYTES = 512 * 2**20
FLIP, CROP, SUBSET = (
    1,
    2,
    3,
)  # what is drawn; never 0, which numpy's SeedSequence would not tell from nothing
# By the channels of a decoded image: grey with alpha becomes RGBA.
OWN_CHANNELS: dict[int, Literal[1, 3, 4]] = {1: 1, 2: 4, 3: 3, 4: 4}


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
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        config: ImagesConfig,
        channels: int,
        keep_in_memory: bool = False,
        mirrored: bool = False,
    ):
        """Open the data set; nothing is decoded yet."""
        self.image_shape = (channels, *parse_resolution(config.resolution))
        self._rows = rows
        self._config = config
        self._mirrored = mirrored
        self._encoded = dataset.select_columns("image")
        self._random_crop = config.crop == "random" and config.resize_mode == "crop"
        self._labels: np.ndarray | None = None
        if "label" in dataset.column_names:
            self._labels = dataset.data.column("label").to_numpy()[rows]
        keep = keep_in_memory and not self._random_crop
        self._memory = PixelMemory(len(rows), (*self.image_shape[1:], channels)) if keep else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return one image.

        Args:
            key: `index`, or `(epoch, index)`; random crops and flips are drawn from the seed and
                these two, so that they depend on neither the order nor the workers.

        Returns:
            `images`: `(C, H, W)` float32 in [-1, 1]; `indices`: int64 scalar, the index;
            `class_labels`: int64 scalar, only if the data has labels.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self))[index]
        crop = self._generator(epoch, index, CROP) if self._random_crop else None
        array = self._pixels(index, crop)
        item = {
            "images": to_tensor(array[:, ::-1] if self.is_mirrored(epoch, index) else array),
            "indices": torch.tensor(index),
        }
        if self._labels is not None:
            item["class_labels"] = torch.tensor(int(self._labels[index]))
        return item

    def is_mirrored(self, epoch: int, index: int) -> bool:
        """Tell whether an image is mirrored in an epoch."""
        if not self._config.horizontal_flip:
            return self._mirrored
        return bool(self._generator(epoch, index, FLIP).integers(2))

    def _generator(self, epoch: int, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._config.seed, epoch, index, purpose))

    def evenly_spaced(self, count: int) -> "ImageDataset":
        """Return `count` images, or all where there are fewer, without anything random.

        Evenly spaced, because folders are sorted by class: the first ones may be all of one.
        """
        chosen = self.view(self._mirrored)
        if count >= len(self):
            return chosen
        places = np.arange(count) * len(self) // count
        chosen._rows = self._rows[places]
        if self._labels is not None:
            chosen._labels = self._labels[places]
        if self._memory is not None:
            channels, height, width = self.image_shape
            chosen._memory = PixelMemory(count, (height, width, channels))
        return chosen

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

    def _pixels(self, index: int, generator: np.random.Generator | None) -> np.ndarray:
        """Return `(H, W, C)` uint8 or uint16 pixels before any flip."""
        if self._memory is not None and (kept := self._memory.get(index)) is not None:
            return kept
        array = decode_row(self._encoded, self._rows[index])
        channels, height, width = self.image_shape
        array = to_channels(array, channels)
        array = fit(array, height, width, self._config.resize_mode, generator)
        if self._memory is not None:
            self._memory.put(index, array)
        return array


@dataclass(frozen=True)
class ImageSplits:
    """The images to train on and those held out.

    Attributes:
        train: with the crops and flips of the configuration.
        validation: cropped at the centre, never flipped.
        id2label: names of the class labels; None without labels.
        validation_fingerprint: 16 hexadecimal digits that stand for the held-out images.
        bad_images: how many images could not be decoded and were left out.
    """

    train: ImageDataset
    validation: ImageDataset
    id2label: dict[int, str] | None
    validation_fingerprint: str
    bad_images: int

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return None if self.id2label is None else len(self.id2label)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        return self.train.image_shape


def decode_row(dataset: Dataset, row: int) -> np.ndarray:
    """Decode the image in one row of a data set with a column `image` (`Image(decode=False)`)."""
    encoded = dataset[int(row)]["image"]
    return decode_image(encoded["bytes"] or encoded["path"])


def open_images(
    config: ImagesConfig, num_proc: int | None = None, keep_in_memory: bool | None = None
) -> ImageSplits:
    """Open a source, check every image, hold some out, and serve all as tensors.

    Args:
        config: which images, and how.
        num_proc: processes for the check; None decodes in this one. Its result is cached.
        keep_in_memory: keep resized pixels in memory; None does if all take at most 512 MB. That is
            for each process: every worker of a DataLoader fills a memory of its own.

    Raises:
        UserError: for whatever the user can mend, in one line.
    """
    source = open_source(config.data)
    split = hold_out(source, config.validation_fraction, config.on_bad_image, num_proc)
    expected = config.validation_fingerprint
    if expected is not None and expected != split.fingerprint:
        raise UserError(
            f"the held-out images of {config.data} have fingerprint {split.fingerprint}, not "
            f"{expected}: give the same data and --validation_fraction as then, or leave out "
            "--validation_fingerprint"
        )
    first = decode_row(split.train, split.train_rows[0])
    channels = config.channels or OWN_CHANNELS[first.shape[2]]
    # At random, because folders are sorted by class. Four numbers, as for flips and crops, so that
    # the last one keeps the draws apart.
    shuffled = np.random.default_rng((config.seed, 0, 0, SUBSET)).permutation(split.train_rows)
    rows = np.sort(shuffled[: config.max_train_samples])
    if keep_in_memory is None:
        height, width = parse_resolution(config.resolution)
        image_bytes = channels * height * width * first.dtype.itemsize
        keep_in_memory = (len(rows) + len(split.validation_rows)) * image_bytes <= (
            MEMORY_LIMIT_BYTES
        )
    label = source.train.features.get("label")
    still = replace(config, crop="center", horizontal_flip=False)
    return ImageSplits(
        train=ImageDataset(split.train, rows, config, channels, keep_in_memory),
        validation=ImageDataset(
            split.validation, split.validation_rows, still, channels, keep_in_memory
        ),
        id2label=None if label is None else dict(enumerate(label.names)),
        validation_fingerprint=split.fingerprint,
        bad_images=split.bad_images,
    )
