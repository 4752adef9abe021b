"""What a denoiser's training asks of its latents, wherever they come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator

from hf_latent.data.images import ImageSplits
from hf_latent.data.latents import LatentPosteriors
from hf_latent.models.load import Autoencoder
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.run_folder import describe_counts, open_run_images


class LatentSource(ABC):
    """The latents of a run.

    Attributes:
        config: of the run.
        accelerator: of the run.
        image_shape: `(C, H, W)` of the images.
        id2label: names of the classes; None without classes.
        counts: how many images there are, in words.
        validation_fingerprint: of the held-out images.
        encode_seconds: what encoding took before the first step.
        encoded_images: how many were encoded in that time, mirror images counted.
    """

    image_shape: tuple[int, int, int]
    id2label: dict[int, str] | None
    counts: str
    validation_fingerprint: str
    encode_seconds: float = 0.0
    encoded_images: int = 0

    def __init__(self, config: DenoiserConfig, accelerator: Accelerator):
        """Keep the settings."""
        self.config, self.accelerator = config, accelerator

    @abstractmethod
    def prepare(self, vae: Autoencoder) -> None:
        """Do what must be done before the first step; all processes call it.

        Args:
            vae: frozen, on the accelerator's device.
        """

    @abstractmethod
    def held_out(self) -> LatentPosteriors:
        """Return the posteriors of held-out images, on the CPU."""

    @abstractmethod
    def batches(self, start_batch: int) -> Iterator[LatentPosteriors]:
        """Yield this process's rows of every global batch, from one on, without end."""

    def take_images(self, splits: ImageSplits | None) -> ImageSplits:
        """Take the attributes from the images, which are opened where they are not."""
        splits = splits or open_run_images(self.config, self.accelerator)
        self.image_shape, self.id2label = splits.image_shape, splits.id2label
        self.counts = describe_counts(splits)
        self.validation_fingerprint = splits.validation_fingerprint
        return splits

    def take_manifest(self, manifest: dict[str, Any]) -> None:
        """Take the attributes from a latent cache's manifest."""
        channels, height, width = manifest["image_shape"]
        self.image_shape = (channels, height, width)
        names = manifest["id2label"]
        self.id2label = names and {int(label): name for label, name in names.items()}
        rows = {name: split["rows"] for name, split in manifest["splits"].items()}
        self.counts = f"latents of {rows['train']} training images, {rows['validation']} held out"
        self.validation_fingerprint = manifest["splits"]["validation"]["fingerprint"]
