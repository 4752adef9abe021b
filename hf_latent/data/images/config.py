"""The settings that say which images to use, and how they become tensors."""

import math
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from hf_latent.command import Seed, Settings
from hf_latent.errors import UserError

LARGEST_SIDE = 2**16
# 16,384 x 16,384, which take about 2 GB to decode.
MAX_IMAGE_PIXELS = 2**28


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
        channels: 1 for grey, 3 for RGB, 4 for RGBA. By default what most training images have; an
            alpha that is opaque everywhere does not count.
        value_range: The pixel values in the files that become black and white, as in 0,4095 for 12
            bits in 16-bit files; others are clipped. By default those of the file's type. A
            negative value needs an equals sign, as in --value_range=-1000,3000.
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
    train_split: str | None = None
    validation_split: str | None = None
    resolution: int | str = 32
    resize_mode: Literal["crop", "pad"] = "crop"
    crop: Literal["center", "random"] = "center"
    horizontal_flip: bool = False
    channels: Literal[1, 3, 4] | None = None
    value_range: str | None = None
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


def parse_value_range(value_range: str | None) -> tuple[float, float] | None:
    """Return the pixel values that become black and white, from "LOW,HIGH"."""
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not -math.inf < low < high < math.inf:
        raise UserError(
            f'--value_range {value_range} must be two numbers "LOW,HIGH", the lower one first, as '
            "in 0,4095"
        )
    return low, high


def describe_values(config: ImagesConfig) -> str:
    """Return what of the decoding is not by default, as the end of `ImageDataset.preprocessing`."""
    value_range = parse_value_range(config.value_range)
    values = "" if value_range is None else ", values {:.9g} to {:.9g}".format(*value_range)
    return values + (", colour profiles ignored" if config.color_profile == "ignore" else "")
