"""The settings of images that a finished model is measured on: their size is the model's own."""

from dataclasses import dataclass, fields

from hf_latent.data.images.config import ImagesConfig


@dataclass(frozen=True, kw_only=True)
class ImagesOfModelConfig(ImagesConfig):
    """The images that a finished model is measured on.

    Attributes:
        resolution: Height and width in pixels, one number for a square or "H,W"; auto is the
            model's own.
        crop: Part of a recipe, and of no effect here: every image is cropped at its centre.
        horizontal_flip: Part of a recipe, and of no effect here: no image is mirrored.
        channels: 1 for grey, 3 for RGB, 4 for RGBA. By default what the model takes.
    """

    resolution: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super(ImagesConfig, self).__post_init__()  # ImagesConfig knows no resolution of auto
        self.images_config((1, 1), None)

    def images_config(self, size: tuple[int, int], channels: int | None) -> ImagesConfig:
        """Return which images are used, and how, without anything random.

        Args:
            size: the model's height and width, for a resolution of auto.
            channels: the model's, where none are given.
        """
        values = {field.name: getattr(self, field.name) for field in fields(ImagesConfig)}
        if self.resolution == "auto":
            values["resolution"] = f"{size[0]},{size[1]}"
        values["channels"] = self.channels or channels
        return ImagesConfig(**values | {"crop": "center", "horizontal_flip": False})
