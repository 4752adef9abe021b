"""Images as training sees them: any source in, `(C, H, W)` tensors in [-1, 1] out."""

from dataclasses import dataclass
from math import prod

import numpy as np

from hf_latent.data.images.config import ImagesConfig, parse_resolution
from hf_latent.data.images.dataset import SUBSET, ImageDataset, decode_row
from hf_latent.data.images.held_out import fingerprint, hold_out
from hf_latent.data.images.sources import open_source
from hf_latent.errors import UserError

MEMORY_LIMIT_BYTES = 512 * 2**20


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
    sides = hold_out(source, config.validation_fraction, config.on_bad_image, num_proc)
    found, expected = fingerprint(sides.validation.hashes), config.validation_fingerprint
    if expected not in (None, found):
        raise UserError(
            f"the held-out images of {config.data} have fingerprint {found}, not {expected}: give "
            "the same data and --validation_fraction as then, or leave out --validation_fingerprint"
        )
    first = decode_row(sides.train.dataset, sides.train.rows[0])
    # Grey with alpha becomes RGBA.
    channels = config.channels or (4 if first.shape[2] == 2 else first.shape[2])
    # At random, because folders are sorted by class. Four numbers, as for flips and crops, so that
    # the last one keeps the draws apart.
    generator = np.random.default_rng((config.seed, 0, 0, SUBSET))
    chosen = np.sort(generator.permutation(len(sides.train.rows))[: config.max_train_samples])
    if keep_in_memory is None:
        image_bytes = channels * prod(parse_resolution(config.resolution)) * first.dtype.itemsize
        count = len(chosen) + len(sides.validation.rows)
        keep_in_memory = count * image_bytes <= MEMORY_LIMIT_BYTES
    train, validation = (
        ImageDataset(side.dataset, side.rows, side.hashes, config, channels, keep_in_memory)
        for side in (sides.train, sides.validation)
    )
    label = source.train.features.get("label")
    return ImageSplits(
        train=train.subset(chosen),
        validation=validation.view(mirrored=False),
        id2label=None if label is None else dict(enumerate(label.names)),
        validation_fingerprint=found,
        bad_images=sides.bad_images,
    )
