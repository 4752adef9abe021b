"""Are generated images copies of training images? Measured beside held-out images.

A copy is much closer to a training image than training images are to one another in that region.
`ratio` is the distance of an image to its nearest training image, divided by that training image's
local scale: its distance to its own fifth-nearest training image. So up to four duplicates do not
change the scale. Because there may be more, the scale is at least a quarter of the median of these
distances. Held-out images have ratios around 1, copies near 0. The idea comes from authenticity
(Alaa et al. 2022, section 3.3), which divides by the distance to the nearest training image.

Mirrored copies count: the smaller of the two ratios is used. Real data has near-duplicates too, so
a test compares the share of copies among the samples with that among held-out images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_latent.evaluation.measures.neighbours import Blocks, nearest_neighbours

# Chosen on Fashion-MNIST, where it separates slightly noised copies from held-out images.
COPY_RATIO = 0.5
LOCAL_NEIGHBOURS = 5
LEAST_SCALE = 0.25
SIGNIFICANCE = 1e-3


@dataclass(frozen=True)
class Closeness:
    """How close images are to training images.

    Attributes:
        ratios: `(N,)` float32, see above.
        places: `(N,)` int64, the nearest training image.
        mirrored: `(N,)` bool, whether the mirrored image is the closer one.
    """

    ratios: torch.Tensor
    places: torch.Tensor
    mirrored: torch.Tensor

    @property
    def copies(self) -> int:
        """The number of images with a ratio below `COPY_RATIO`."""
        return int((self.ratios < COPY_RATIO).sum())


@dataclass(frozen=True)
class Duplicates:
    """How close training images are to one another, on the same scale.

    Attributes:
        ratios: `(M,)` float32, see above; the nearest training image is another one.
        places: `(M,)` int64, the nearest other training image.
        local_scale: `(M,)` float32, see above.
    """

    ratios: torch.Tensor
    places: torch.Tensor
    local_scale: torch.Tensor

    @classmethod
    def from_neighbours(cls, distances: torch.Tensor, places: torch.Tensor) -> "Duplicates":
        """Compute them from each image's five nearest others, `(M, 5)`, distances ascending."""
        scale = distances[:, -1]
        scale = scale.clamp(min=max(LEAST_SCALE * scale.median().item(), 1e-9))
        return cls(distances[:, 0] / scale[places[:, 0]], places[:, 0], scale)

    @property
    def count(self) -> int:
        """The number of training images with a ratio below `COPY_RATIO`."""
        return int((self.ratios < COPY_RATIO).sum())


def measure_closeness(
    images: Blocks,
    mirrored: Blocks,
    train: Blocks,
    duplicates: Duplicates,
    on_images: Callable[[int], object] = lambda count: None,
) -> Closeness:
    """Find the training image that is nearest to each image or to its mirror image.

    Args:
        images: N vectors.
        mirrored: N vectors, of the mirrored images.
        train: M vectors of the training images.
        duplicates: of the training images, in the same order.
        on_images: called with the number of images after each block, twice for each image.
    """
    ratios, places = [], []
    for blocks in (images, mirrored):
        distances, nearest = nearest_neighbours(blocks, train, 1, on_queries=on_images)
        places.append(nearest[:, 0])
        ratios.append(distances[:, 0] / duplicates.local_scale[nearest[:, 0]])
    is_mirrored = ratios[1] < ratios[0]
    return Closeness(
        torch.where(is_mirrored, ratios[1], ratios[0]),
        torch.where(is_mirrored, places[1], places[0]),
        is_mirrored,
    )


def excess_p_value(copies: int, images: int, held_out_copies: int, held_out_images: int) -> float:
    """Return the probability of at least so many copies if samples were like held-out images.

    One-sided Fisher's exact test: the tail of the hypergeometric distribution. `copies` are among
    `images` samples.
    """
    total, flagged = images + held_out_images, copies + held_out_copies

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    tail = sum(
        math.exp(
            log_choose(images, k)
            + log_choose(held_out_images, flagged - k)
            - log_choose(total, flagged)
        )
        for k in range(copies, min(images, flagged) + 1)
        if flagged - k <= held_out_images
    )
    return min(1.0, tail)


def memorisation_figures(samples: Closeness, held_out: Closeness, space: str) -> dict[str, object]:
    """Return the flat figures of a space, whose name is part of the keys.

    `..._found` is whether there are more copies than chance explains, and None if the images are
    too few to find out.
    """
    images, held_out_images = len(samples.ratios), len(held_out.ratios)
    p_value = excess_p_value(samples.copies, images, held_out.copies, held_out_images)
    can_tell = excess_p_value(images, images, 0, held_out_images) < SIGNIFICANCE
    return {
        f"memorisation_{space}_found": p_value < SIGNIFICANCE if can_tell else None,
        f"memorisation_{space}_copies": samples.copies,
        f"memorisation_{space}_held_out_copies": held_out.copies,
        f"memorisation_{space}_p_value": p_value,
        f"memorisation_{space}_ratio_smallest": samples.ratios.min().item(),
        f"memorisation_{space}_held_out_ratio_smallest": held_out.ratios.min().item(),
        f"memorisation_{space}_ratio_median": samples.ratios.median().item(),
        f"memorisation_{space}_held_out_ratio_median": held_out.ratios.median().item(),
    }
