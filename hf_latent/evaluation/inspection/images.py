"""The images of an inspection: the same held-out images, at the same size, for all autoencoders."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset, evenly_spaced
from hf_latent.data.images.open import ImageSplits, open_images, with_values_of
from hf_latent.errors import UserError
from hf_latent.evaluation.config import ImagesOfModelConfig
from hf_latent.evaluation.features.extractors import FeatureExtractor, image_vectors
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.models.load import Autoencoder
from hf_latent.models.presets import Compression, image_size, measure_compression

FEWEST_IMAGES = 2


@contextmanager
def naming(name: str, vaes: Mapping[str, Autoencoder]) -> Iterator[None]:
    """Begin a user error with the name of the autoencoder that it is about, if there are several.

    Raises:
        UserError: the block's, with the name.
    """
    try:
        yield
    except UserError as error:
        if len(vaes) == 1:
            raise
        raise UserError(f"{name}: {error}") from error


def fit_config(images: ImagesOfModelConfig, vaes: Mapping[str, Autoencoder]) -> ImagesConfig:
    """Return the settings of images that all autoencoders take.

    Raises:
        UserError: if they are for images of other sizes or other value ranges than one another.
    """
    sizes = {name: size for name, vae in vaes.items() if (size := image_size(vae))}
    if images.resolution == "auto" and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise UserError(f"--resolution is needed: these are for images of several sizes: {shown}")
    size = next(iter(sizes.values()), None)
    configs = {}
    for name, vae in vaes.items():
        with naming(name, vaes):
            configs[name] = with_values_of(vae, images.images_config(size))
    first, *others = configs
    for name in others:
        if configs[name] != configs[first]:
            raise UserError(
                f"{name} was trained on images with another value range than {first}: inspect them "
                "one by one"
            )
    return configs[first]


def open_fitting_images(
    images: ImagesOfModelConfig, vaes: Mapping[str, Autoencoder], max_images: int
) -> tuple[ImageSplits, ImageDataset, dict[str, Compression]]:
    """Open the data and check that it fits the autoencoders.

    Args:
        vaes: by the names that messages give them.

    Returns:
        The splits, the held-out images to inspect, and the sizes of images and latents by name.

    Raises:
        UserError: if size or channels do not fit, or there are too few held-out images.
    """
    splits = open_images(fit_config(images, vaes), keep_in_memory=False)
    compressions = {}
    for name, vae in vaes.items():
        with naming(name, vaes):
            compressions[name] = measure_compression(vae, splits.image_shape)
    held_out = splits.validation.evenly_spaced(max_images)
    if len(held_out) < FEWEST_IMAGES:
        raise UserError(
            f"{len(held_out)} held-out image is too few: raise --validation_fraction or "
            "--max_images"
        )
    return splits, held_out, compressions


@dataclass(frozen=True)
class RealVectors:
    """Feature vectors of real images, to which those of decoded images are compared.

    Attributes:
        extractor: computes the vectors.
        held_out_vectors: of the inspected images, in blocks.
        train: training images, as many as are inspected, or all if there are fewer.
        train_vectors: of `train`, in blocks.
        fd: of the inspected images to `train`, at equal numbers.
    """

    extractor: FeatureExtractor
    held_out_vectors: list[torch.Tensor]
    train: ImageDataset
    train_vectors: list[torch.Tensor]
    fd: float

    @classmethod
    def read(
        cls,
        held_out: ImageDataset,
        train: ImageDataset,
        extractor: FeatureExtractor,
        batch_size: int,
        num_workers: int,
        on_images: Callable[[int], object],
    ) -> "RealVectors":
        """Compute the vectors of the inspected images and of training images.

        Args:
            held_out: the inspected images.
            train: all training images.
            on_images: called with the number of images after each batch.
        """
        train = train.evenly_spaced(len(held_out))
        own, others = (
            list(image_vectors(x, extractor, batch_size, on_images, num_workers))
            for x in (held_out, train)
        )
        few = torch.cat(own)[evenly_spaced(len(held_out), len(train))]
        return cls(extractor, own, train, others, frechet_distance([few], others))


@dataclass(frozen=True)
class InspectedImages:
    """The images of an inspection, and what is known of them before.

    Attributes:
        splits: the training images and all held-out ones.
        held_out: the inspected images.
        real: None if FDs are not measured.
    """

    splits: ImageSplits
    held_out: ImageDataset
    real: RealVectors | None

    def identity(self) -> dict[str, Any]:
        """Return what a report's figures depend on."""
        identity: dict[str, Any] = {
            "preprocessing": self.held_out.preprocessing,
            "held_out_fingerprint": self.held_out.fingerprint,
            "validation_fingerprint": self.splits.validation_fingerprint,
        }
        if self.real is not None:
            identity |= {
                "train_fingerprint": self.real.train.fingerprint,
                "reconstruction_fd_preprocessing": self.real.extractor.preprocessing,
            }
        return identity
