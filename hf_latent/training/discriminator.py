"""A PatchGAN discriminator, which tells images from reconstructions."""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Classify each patch as image or reconstruction (Isola et al. 2017, section 3.2.2).

    Group normalisation replaces the paper's batch normalisation: the logits of one image depend
    neither on the other images nor on the number of processes.

    Args:
        in_channels: C of the images.
        base_channels: channels of the first layer. Each layer doubles them, up to 8 times.
        num_layers: layers with stride 2. Each doubles the patch that one logit sees.
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
        """Return logits `(B, 1, h, w)`, high for images, from `(B, C, H, W)` float in [-1, 1]."""
        return self.layers(images)
