"""Open any source of images as `(C, H, W)` tensors in [-1, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import numpy as np

from hf_latent.data.images.captions import CaptionTexts
from hf_latent.data.images.config import (
    MEASURED,
    ImagesConfig,
    parse_resolution,
    parse_shown_channels,
    parse_value_range,
    write_value_range,
)
from hf_latent.data.images.dataset import SUBSET, ImageDataset
from hf_latent.data.images.held_out import (
    CheckedImages,
    fingerprint,
    hold_out,
    read_captions,
    read_labels,
)
from hf_latent.data.images.sources import Choice, open_source
from hf_latent.data.images.summary import DataSummary, choose_channels, summarize_images
from hf_latent.errors import UserError
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.autoencoders import image_channels
from hf_latent.pipeline.decode import IMAGE_VALUES, first_channels, shown_channels

Config = TypeVar("Config", bound=ImagesConfig)
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
        values: the entry `decode.IMAGE_VALUES` of an autoencoder's configuration, if the images
            have a value range; otherwise None.
        captions: the distinct captions of both; None without captions.
    """

    train: ImageDataset
    validation: ImageDataset
    id2label: dict[int, str] | None
    validation_fingerprint: str
    summary: DataSummary
    values: dict[str, Any] | None = None
    captions: CaptionTexts | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return None if self.id2label is None else len(self.id2label)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        return self.train.image_shape

    @property
    def shown_channels(self) -> Sequence[int] | None:
        """The channels of measured images that pictures show, as `decode.shown_channels`."""
        return None if self.values is None else self.values["shown"]

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
            *(config.image_column, config.label_column),
            *(config.train_split, config.validation_split, config.caption_column),
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
    if checked_train.are_measured:
        channels = int(checked_train.facts["channels"][0])
    needs_range = any((x.facts["bits"] == 32).any() for x in (checked_train, checked_validation))
    config, values = _choose_values(config, checked_train, channels, needs_range)
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
        ImageDataset(
            images.dataset,
            images.rows,
            images.hashes,
            config,
            channels,
            keep_in_memory,
            is_measured=checked_train.are_measured,
        )
        for images in (checked_train, checked_validation)
    )
    train, validation = train.subset(chosen), validation.view(mirrored=False)
    train, validation, captions = _add_captions(train, validation)
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
        values=values,
        captions=captions,
    )


def _add_captions(
    train: ImageDataset, validation: ImageDataset
) -> tuple[ImageDataset, ImageDataset, CaptionTexts | None]:
    """Number the captions of both splits, if there are some."""
    splits = train, validation
    found = [read_captions(x.dataset, x.rows) or [[]] * len(x) for x in splits]
    captions = CaptionTexts.of(found)
    if len(captions.texts) == 1:
        return train, validation, None
    train, validation = (
        replace(x, caption_ids=captions.number(texts))
        for x, texts in zip(splits, found, strict=True)
    )
    return train, validation, captions


def _choose_values(
    config: ImagesConfig, train: CheckedImages, channels: int, needs_range: bool
) -> tuple[ImagesConfig, dict[str, Any] | None]:
    """Return settings with a value range, measured where it must be, and `ImageSplits.values`.

    Args:
        config: the settings.
        train: the images that are measured.
        channels: of every image.
        needs_range: whether an image, also a held-out one, has no range of its own.

    Raises:
        UserError: if value range or shown channels do not fit the images.
    """
    facts, shown = train.facts, parse_shown_channels(config.shown_channels)
    pairs = parse_value_range(config.value_range)
    if pairs is None and train.are_measured:
        ends = np.min(facts["lows"].tolist(), axis=0), np.max(facts["highs"].tolist(), axis=0)
        pairs = list(zip(*(end.tolist() for end in ends), strict=True))
    elif pairs is None and (config.value_range == MEASURED or needs_range):
        pairs = [(facts["low"].min(), facts["high"].max())]
    # Channel 0 of grey pictures may be named: an autoencoder of measured grey images names it.
    known = channels if train.are_measured or channels == 1 else 0
    if shown is not None and max(shown) >= known:
        what = f"{channels} channels, from 0" if train.are_measured else "no measured images"
        raise UserError(f"--shown_channels {config.shown_channels}: {config.data} has {what}")
    if pairs is None:
        return config, None
    if len(pairs) not in ((1, channels) if train.are_measured else (1,)):
        raise UserError(
            f"--value_range has {len(pairs)} pairs of values, and the images have {channels} "
            "channels: give one pair" + ", or one for each channel" * train.are_measured
        )
    # A constant channel has no range.
    pairs = [(float(low), float(high if low < high else low + 1)) for low, high in pairs]
    values = {
        "range": pairs,
        "dtype": np.result_type(*set(facts["dtype"].tolist())).name,
        "shown": (shown or first_channels(channels)) if train.are_measured else None,
    }
    has_alpha = channels == 4 and not train.are_measured  # it is no value of the range
    config = replace(config, value_range=write_value_range(pairs))
    return config, None if has_alpha else values


def with_values_of(vae: Autoencoder, config: Config) -> Config:
    """Return settings with the value range and the channels that an autoencoder was trained with.

    Raises:
        UserError: if the settings have another value range.
    """
    values = vae.config.get(IMAGE_VALUES)
    if values is None:
        return config
    own = [tuple(pair) for pair in values["range"]]
    if parse_value_range(config.value_range) not in (None, own):
        raise UserError(
            f"--value_range {config.value_range} is not that of the autoencoder, "
            f"{write_value_range(own)}: leave it out"
        )
    changes: dict[str, Any] = {"value_range": write_value_range(own)}
    if (shown := shown_channels(vae)) is not None:
        given = config.shown_channels
        changes["channels"] = config.channels or image_channels(vae)
        changes["shown_channels"] = ",".join(map(str, shown)) if given is None else given
    return replace(config, **changes)
