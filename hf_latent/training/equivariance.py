"""Random turns and scales, under which a decoder is trained to be equivariant."""

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from hf_latent.training.run.batches import seeded_generator

# Few sizes, because `--compile` builds kernels for each.
SCALES = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Transform:
    """A smaller size and quarter turns, as in EQ-VAE (Kouzelis et al. 2025, section 3).

    Attributes:
        turns: quarter turns, counterclockwise, from 0 to 3.
        scale: factor of height and width.
    """

    turns: int
    scale: float

    def __call__(self, values: torch.Tensor, factor: int = 1) -> torch.Tensor:
        """Transform latents, or images to the size that the transformed latents decode to.

        Args:
            values: `(B, C, H, W)` float.
            factor: 1 for latents; for images the downsampling factor f, which divides H and W.
        """
        sides = (side // factor for side in values.shape[-2:])
        size = tuple(factor * max(1, round(side * self.scale)) for side in sides)
        if size != values.shape[-2:]:
            values = interpolate(values, size, mode="bilinear", antialias=True)
        return values.rot90(self.turns, dims=(-2, -1))


def choose_transform(seed: int, step: int, micro_step: int) -> Transform:
    """Draw the transform of a global batch: any of the 16 but the one that changes nothing."""
    generator = seeded_generator(seed, "equivariance", step, micro_step)
    index = int(torch.randint(1, 4 * len(SCALES), (), generator=generator))
    return Transform(index % 4, SCALES[index // 4])
