"""Images as training sees them: any source in, `(C, H, W)` tensors in [-1, 1] out."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hf_latent.data.images.config import ImagesConfig, parse_resolution
from hf_latent.data.images.dataset import SUBSET, ImageDataset, decode_row
from hf_latent.data.images.held_out import hold_out
from hf_latent.data.images.sources import open_source
from hf_latent.errors import UserError

MEMORY_LIMIT_BYTES = 512 * 2**20
# By the channels of a decoded image: grey with alpha becomes RGBA.
OWN_CHANNELS: dict[int, Literal[1, 3, 4]] = {1: 1, 2: 4, 3: 3, 4: 4}


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
    train, validation = split.train, split.validation
    first = decode_row(train.dataset, train.rows[0])
    channels = config.channels or OWN_CHANNELS[first.shape[2]]
    # At random, because folders are sorted by class. Four numbers, as for flips and crops, so that
    # the last one keeps the draws apart.
    shuffled = np.random.default_rng((config.seed, 0, 0, SUBSET)).permutation(train.rows)
    rows = np.sort(shuffled[: config.max_train_samples])
    hashes = train.hashes[np.searchsorted(train.rows, rows)]
    if keep_in_memory is None:
        height, width = parse_resolution(config.resolution)
        image_bytes = channels * height * width * first.dtype.itemsize
        keep_in_memory = (len(rows) + len(validation.rows)) * image_bytes <= MEMORY_LIMIT_BYTES
    label = source.train.features.get("label")
    still = replace(config, crop="center", horizontal_flip=False)
    return ImageSplits(
        train=ImageDataset(train.dataset, rows, config, channels, keep_in_memory, hashes=hashes),
        validation=ImageDataset(
            validation.dataset,
            validation.rows,
            still,
            channels,
            keep_in_memory,
            hashes=validation.hashes,
        ),
        id2label=None if label is None else dict(enumerate(label.names)),
        validation_fingerprint=split.fingerprint,
        bad_images=split.bad_images,
    )
