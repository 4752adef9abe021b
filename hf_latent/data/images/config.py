"""The settings that say which images to use, and how they become tensors."""

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from hf_latent.command import Seed, Settings
from hf_latent.errors import UserError

LARGEST_SIDE = 2**16


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
        channels: 1 for grey, 3 for RGB, 4 for RGBA. By default those of the first training image.
        validation_fraction: Share of the images to hold out, between 0 and 1, chosen by content.
            Only used if the data has no validation or test split.
        validation_fingerprint: Stop unless the held-out images have this fingerprint, 16
            hexadecimal digits from an earlier report. By default it is not compared.
        on_bad_image: stop lists all images that cannot be decoded, and ends; skip leaves them out.
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
    validation_fraction: OpenUnitInterval = 0.05
    validation_fingerprint: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    max_train_samples: PositiveInt | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Check the resolution."""
        super().__post_init__()
        parse_resolution(self.resolution)


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
