"""The settings that say which images to use, and how they become tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from hf_latent.command import Seed, Settings
from hf_latent.errors import UserError

LARGEST_SIDE = 2**16
# 16,384 x 16,384, which take about 2 GB to decode.
MAX_IMAGE_PIXELS = 2**28
MEASURED = "measured"


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(Settings):
    """Which images to use, and how they become tensors.

    Attributes:
        data: The images: fashion_mnist (built in, 15,000 images) or fashion_mnist_full; a folder
            of images, whose subfolders are the classes; a parquet file or a folder of them; a
            folder written by save_to_disk; or a Hub data set id like owner/name.
        image_column: The column of images. By default image, or else the first column of images.
        label_column: The column of class labels, also of a metadata.csv beside images; none for
            no classes. By default found by its name, such as label or class.
        caption_column: The column of captions, also of a metadata.jsonl beside images. auto finds
            it by its name, such as text or caption; or else takes the lines of a .txt file beside
            each image; or else the names of the classes. By default there are no captions.
        train_split: The training images: the name of a split, or a folder's path in data, such as
            images/train. By default found by its name.
        validation_split: The held-out images, named in the same way; none to hold out some of
            the training images. By default found by its name, validation before test.
        resolution: Height and width in pixels, one number for a square or "H,W".
        resize_mode: crop scales the image to cover the resolution, and cuts off the rest; pad
            shrinks a larger image to fit, and centres the image on black (with 4 channels, on
            transparent).
        crop: Which part of a training image resize_mode crop keeps. Held-out images are always
            cropped at the centre.
        horizontal_flip: Mirror a random half of the training images, another half in each epoch.
        channels: 1 for grey, 3 for RGB, 4 for RGBA; or the number of channels of measured images
            (.npy, TIFF), whose pages or axis of that size are then channels. By default what most
            training images have; an alpha that is opaque everywhere does not count.
        value_range: The pixel values in the files that become black and white, as in 0,4095 for 12
            bits in 16-bit files; others are clipped. Measured images may have a pair for each
            channel. By default, and with measured, the lowest and highest of the training images
            (pictures, by default: those of the file's type). A negative value needs an equals sign,
            as in --value_range=-1000,3000.
        shown_channels: The channel of measured images, from 0, that pictures show as grey, or three
            as red, green and blue, as in 0,2,5. By default the first three.
        color_profile: convert colours to sRGB if a file has a colour profile (ICC), or ignore it.
        validation_fraction: Share of the images to hold out, between 0 and 1, chosen by content.
            Only used if the data has no validation or test split.
        validation_fingerprint: Stop unless the held-out images have this fingerprint, 16
            hexadecimal digits from an earlier report. By default it is not compared.
        on_bad_image: stop lists all images that cannot be used, and ends; skip leaves them out.
        max_image_pixels: Images with more pixels cannot be used, because a small file can decode
            to one that fills the memory. By default 16,384 x 16,384.
        max_train_samples: Use only this many training images, drawn at random. By default all.
        seed: Seed of all random draws. It does not change which images are held out.
    """

    data: str = "fashion_mnist"
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    resolution: int | str = 32
    resize_mode: Literal["crop", "pad"] = "crop"
    crop: Literal["center", "random"] = "center"
    horizontal_flip: bool = False
    channels: PositiveInt | None = None
    value_range: str | None = None
    shown_channels: int | str | None = None
    color_profile: Literal["convert", "ignore"] = "convert"
    validation_fraction: OpenUnitInterval = 0.05
    validation_fingerprint: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    max_image_pixels: PositiveInt = MAX_IMAGE_PIXELS
    max_train_samples: PositiveInt | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super().__post_init__()
        parse_resolution(self.resolution)
        parse_value_range(self.value_range)
        parse_shown_channels(self.shown_channels)


def select_image_settings(config: ImagesConfig) -> dict[str, Any]:
    """Return those of a command's settings that say which images to use."""
    return {field.name: getattr(config, field.name) for field in fields(ImagesConfig)}


def parse_resolution(resolution: int | str) -> tuple[int, int]:
    """Return height and width in pixels, from one number or "H,W"."""
    parts = str(resolution).split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError(
            f'--resolution {resolution} must be a positive number or "H,W", as in 48,80'
        )
    height, width = int(parts[0]), int(parts[-1])
    if max(height, width) > LARGEST_SIDE:
        raise UserError(f"--resolution {resolution} is larger than {LARGEST_SIDE} pixels")
    return height, width


def parse_value_range(value_range: str | None) -> list[tuple[float, float]] | None:
    """Return the pixel values that become black and white, a pair for all channels or for each.

    None stands for the default values, and for those that are yet to be measured.
    """
    if value_range in (None, MEASURED):
        return None
    try:
        values = [float(value) for value in value_range.split(",")]
    except ValueError:
        values = []
    pairs = list(zip(values[::2], values[1::2], strict=False))
    if not values or len(values) % 2 or not all(-math.inf < x < y < math.inf for x, y in pairs):
        raise UserError(
            f'--value_range {value_range} must be two numbers "LOW,HIGH", the lower one first, as '
            f"in 0,4095, or two for each channel, or {MEASURED}"
        )
    return pairs


def write_value_range(pairs: Sequence[Sequence[float]]) -> str:
    """Return the text that `parse_value_range` reads."""
    return ",".join(repr(float(value)) for pair in pairs for value in pair)


def parse_shown_channels(shown_channels: int | str | None) -> list[int] | None:
    """Return one channel or three, from "0" or "0,2,5"."""
    if shown_channels is None:
        return None
    parts = str(shown_channels).split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise UserError(
            f"--shown_channels {shown_channels} must be one channel, or three for red, green and "
            "blue, as in 0,2,5; the first one is 0"
        )
    return [int(part) for part in parts]


def describe_values(config: ImagesConfig) -> str:
    """Return what of the decoding is not by default, as the end of `ImageDataset.preprocessing`."""
    pairs = parse_value_range(config.value_range) or []
    values = ", values " * bool(pairs) + ", ".join(f"{x:.9g} to {y:.9g}" for x, y in pairs)
    return values + (", colour profiles ignored" if config.color_profile == "ignore" else "")
