"""Open any source of images as `(C, H, W)` tensors in [-1, 1]."""

from dataclasses import dataclass
from math import prod

import numpy as np

from hf_latent.data.images.config import ImagesConfig, parse_resolution
from hf_latent.data.images.dataset import SUBSET, ImageDataset
from hf_latent.data.images.held_out import fingerprint, hold_out, read_labels
from hf_latent.data.images.sources import Choice, open_source
from hf_latent.data.images.summary import DataSummary, choose_channels, summarize_images
from hf_latent.errors import UserError

MEMORY_LIMIT_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ImageSplits:
    """The training images and the held-out images.

    Attributes:
        train: with the crops and flips of the configuration.
        validation: cropped at the centre, never flipped.
        id2label: names of the class labels; None without labels.
        validation_fingerprint: 16 hexadecimal digits of all held-out images.
        summary: what the data is.
    """

    train: ImageDataset
    validation: ImageDataset
    id2label: dict[int, str] | None
    validation_fingerprint: str
    summary: DataSummary

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return None if self.id2label is None else len(self.id2label)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        return self.train.image_shape

    @property
    def bad_images(self) -> int:
        """Number of images that cannot be used and are left out."""
        return int(self.summary.figures()["bad_images"])


def open_images(
    config: ImagesConfig, num_proc: int | None = None, keep_in_memory: bool | None = None
) -> ImageSplits:
    """Open a source, decode every image once to check it, hold some images out, and say so.

    Args:
        config: which images, and how they become tensors.
        num_proc: processes that check the images; None: this one. The result is cached.
        keep_in_memory: keep resized pixels in memory, in each worker of a DataLoader its own; None:
            if all need at most 512 MB.

    Raises:
        UserError: if the source, an image or the fingerprint is not as the configuration says.
    """
    source = open_source(
        config.data,
        Choice(
            config.image_column, config.label_column, config.train_split, config.validation_split
        ),
    )
    checked_train, checked_validation, bad_images = hold_out(source, config, num_proc)
    found, expected = fingerprint(checked_validation.hashes), config.validation_fingerprint
    if expected not in (None, found):
        raise UserError(
            f"the held-out images of {config.data} have fingerprint {found}, not {expected}: give "
            "the same data and --validation_fraction again, or leave out --validation_fingerprint"
        )
    channels = config.channels or choose_channels(checked_train)
    # At random, because folders are sorted by class. The key has four numbers, like those of flips
    # and crops: the last one keeps the draws apart.
    generator = np.random.default_rng((config.seed, 0, 0, SUBSET))
    chosen = np.sort(generator.permutation(len(checked_train.rows))[: config.max_train_samples])
    if keep_in_memory is None:
        is_8_bit = config.value_range is None and (checked_train.facts["bits"] == 8).all()
        image_bytes = channels * prod(parse_resolution(config.resolution)) * (1 if is_8_bit else 2)
        count = len(chosen) + len(checked_validation.rows)
        keep_in_memory = count * image_bytes <= MEMORY_LIMIT_BYTES
    train, validation = (
        ImageDataset(images.dataset, images.rows, images.hashes, config, channels, keep_in_memory)
        for images in (checked_train, checked_validation)
    )
    train, validation = train.subset(chosen), validation.view(mirrored=False)
    labels = read_labels(train.dataset, train.rows)
    summary = summarize_images(
        source, config, checked_train, checked_validation, labels, bad_images, channels
    )
    summary.log()
    return ImageSplits(
        train=train,
        validation=validation,
        id2label=None if labels is None else dict(enumerate(source.train.features["label"].names)),
        validation_fingerprint=found,
        summary=summary,
    )
