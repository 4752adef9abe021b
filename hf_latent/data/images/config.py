"""The settings of images: which ones, and how they become tensors."""

from dataclasses import dataclass
from typing import Any, Literal

from hf_latent.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Which images to use, and how they become tensors.

    Attributes:
        data: The images: fashion_mnist (built in, 15,000 images) or fashion_mnist_full; a folder
            of images, where subfolders give class labels; a parquet file or a folder of them; a
            folder written by save_to_disk; or a Hub data set id like owner/name.
        resolution: Height and width in pixels, one number for a square or "H,W".
        resize_mode: crop scales the image until it covers the resolution and cuts off the rest;
            pad shrinks it to fit if it is larger, never enlarges it, and centres it on black
            (on transparent with 4 channels).
        crop: Which part crop keeps of a training image. Held-out images are always cropped at the
            centre.
        horizontal_flip: Mirror half of the training images, drawn anew in each epoch.
        channels: 1 for grey, 3 for RGB, 4 for RGBA. By default what the first training image has.
        validation_fraction: Share of the images to hold out, between 0 and 1, chosen by content.
            Only used if the data has no validation or test split.
        validation_fingerprint: Refuse to run unless the held-out images have this fingerprint, 16
            hexadecimal digits from an earlier report. By default any will do.
        on_bad_image: stop names all images that cannot be decoded and ends; skip leaves them out.
        max_train_samples: Use so many training images only, drawn from the seed. By default all.
        seed: Seed of everything random. It does not change which images are held out.
    """

    data: str = "fashion_mnist"
    resolution: int | str = 32
    resize_mode: Literal["crop", "pad"] = "crop"
    crop: Literal["center", "random"] = "center"
    horizontal_flip: bool = False
    channels: Literal[1, 3, 4] | None = None
    validation_fraction: float = 0.05
    validation_fingerprint: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    max_train_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        parse_resolution(self.resolution)
        choices: dict[str, tuple[Any, ...]] = {
            "resize_mode": ("crop", "pad"),
            "crop": ("center", "random"),
            "channels": (1, 3, 4, None),
            "on_bad_image": ("stop", "skip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                given = f"--{name} {getattr(self, name)}"
                raise UserError(f"{given} is not one of {', '.join(map(str, allowed))}")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"--validation_fraction {self.validation_fraction} must lie between 0 and 1"
            )
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise UserError(f"--max_train_samples {self.max_train_samples} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} must be from 0 to 2^32 - 1")


def parse_resolution(resolution: int | str) -> tuple[int, int]:
    """Return height and width in pixels, from one number or "H,W"."""
    parts = str(resolution).split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError(
            f'--resolution {resolution} must be a positive number or "H,W", as in 48,80'
        )
    return int(parts[0]), int(parts[-1])
