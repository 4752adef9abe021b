"""The second player: a PatchGAN discriminator."""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Tells images from reconstructions, patch by patch (Isola et al. 2017, section 3.2.2).

    Normalised by groups within an image, never over the batch: its answer about one image depends
    on no other, so neither on how many processes share the batch.

    Args:
        in_channels: C of the images.
        base_channels: width of the first layer; doubled in each layer, up to eight times.
        num_layers: layers with stride 2; each doubles what one patch sees.
    """

    @register_to_config
    def __init__(self, in_channels: int, base_channels: int = 64, num_layers: int = 3):
        """Build the layers, with weights drawn from N(0, 0.02) as in the paper."""
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        width = base_channels
        for layer in range(1, num_layers + 1):
            before, width = width, base_channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(width, min(32, max(1, width // 4))), width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Judge every patch.

        Args:
            images: `(B, C, H, W)` float in [-1, 1].

        Returns:
            Logits `(B, 1, h, w)`, high for what looks like an image.
        """
        return self.layers(images)
