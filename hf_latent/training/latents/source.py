"""What a denoiser's training asks of its latents, wherever they come from."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator

from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.cache import LatentPosteriors
from hf_latent.evaluation.machine import shown_name
from hf_latent.models.load import Autoencoder
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.run.folder import describe_counts, open_run_images


class LatentSource(ABC):
    """The latents of a run.

    Attributes:
        config: of the run.
        accelerator: of the run.
        image_shape: `(C, H, W)` of the images.
        id2label: names of the classes; None without classes.
        data: how a report calls the images; None: not known.
        train_images: how many there are to train on.
        held_out_images: how many are held out.
        counts: how many images there are, in words.
        validation_fingerprint: of the held-out images.
        identity: stands for the latents, where they are kept; known once they are there.
        encode_seconds: what encoding took before the first step.
        encoded_images: how many were encoded in that time, mirror images not counted.
    """

    image_shape: tuple[int, int, int]
    id2label: dict[int, str] | None
    data: str | None
    train_images: int
    held_out_images: int
    counts: str
    validation_fingerprint: str
    identity: str | None = None
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
        # Where the latents are kept, each image is read once.
        keep = None if self.config.encode_every_step else False
        splits = splits or open_run_images(self.config, self.accelerator, keep)
        self.image_shape, self.id2label = splits.image_shape, splits.id2label
        self.data = shown_name(self.config.data)
        self.train_images, self.held_out_images = len(splits.train), len(splits.validation)
        self.counts = describe_counts(splits)
        self.validation_fingerprint = splits.validation_fingerprint
        return splits

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: what stands for the latents; of images, nothing."""
        return {"latents": self.identity}

    def load_state(self, state: dict[str, Any]) -> None:
        """Compare with a checkpoint's `state`; images have no say, as `--data` has none.

        Raises:
            ValueError: if the checkpoint was made with other latents.
        """
        if None not in (state["latents"], self.identity) and state["latents"] != self.identity:
            raise ValueError("the latents are not those that it was trained with")

    def take_manifest(self, manifest: dict[str, Any]) -> None:
        """Take the attributes from a latent cache's manifest."""
        keys = ("autoencoder_sha256", "splits", "mirrored", "dtype", "shard_rows")
        text = json.dumps([manifest[key] for key in keys], sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        channels, height, width = manifest["image_shape"]
        self.image_shape = (channels, height, width)
        names = manifest["id2label"]
        self.id2label = names and {int(label): name for label, name in names.items()}
        rows = {name: split["rows"] for name, split in manifest["splits"].items()}
        self.train_images, self.held_out_images = rows["train"], rows["validation"]
        if self.config.latents:
            self.data = manifest["data"]
        images = manifest["data"] or "a local folder"
        self.counts = (
            f"latents of {rows['train']} training images of {images}, {rows['validation']} held out"
        )
        self.validation_fingerprint = manifest["splits"]["validation"]["fingerprint"]
