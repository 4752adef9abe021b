"""Are generated images copies of training images? Measured beside images that were held out.

A copy is far closer to a training image than training images are to one another there. How close
"there" is depends on the place: `ratio` is the distance to the nearest training image, divided by
the distance from that one to its own fifth-nearest training image, so that up to four duplicates
of it do not matter; and since there may be more, by no less than a quarter of the median of these
distances. Images that were never trained on have ratios around 1, copies near 0. The idea is that
of authenticity (Alaa et al. 2022, section 3.3), which compares with the nearest one.

Mirrored copies count: the smaller of the two ratios is taken. Whether there are more copies among
the samples than among held-out images is tested, since real data has near-duplicates too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_latent.evaluation.measures.neighbours import Blocks, nearest_neighbours

# Set on Fashion-MNIST, where it tells slightly noised copies from held-out images in latents.
COPY_RATIO = 0.5
LOCAL_NEIGHBOURS = 5
LEAST_SCALE = 0.25
SIGNIFICANCE = 1e-3


@dataclass(frozen=True)
class Closeness:
    """How close images come to training images.

    Attributes:
        ratios: `(N,)` float32, see above.
        places: `(N,)` int64, the nearest training image.
        mirrored: `(N,)` bool, whether it is the mirrored image that comes so close.
    """

    ratios: torch.Tensor
    places: torch.Tensor
    mirrored: torch.Tensor

    @property
    def copies(self) -> int:
        """How many images have a ratio below `COPY_RATIO`."""
        return int((self.ratios < COPY_RATIO).sum())


@dataclass(frozen=True)
class Duplicates:
    """How close training images come to one another, on the same scale.

    Attributes:
        ratios: `(M,)` float32: the distance to the nearest other training image, divided by the
            distance from that one to its own fifth-nearest.
        places: `(M,)` int64, the nearest other one.
        local_scale: `(M,)` float32, each one's distance to its own fifth-nearest, at least a
            quarter of their median.
    """

    ratios: torch.Tensor
    places: torch.Tensor
    local_scale: torch.Tensor

    @classmethod
    def from_neighbours(cls, distances: torch.Tensor, places: torch.Tensor) -> "Duplicates":
        """Take them from the five nearest others: distances, ascending, and places `(M, 5)`."""
        scale = distances[:, -1]
        scale = scale.clamp(min=max(LEAST_SCALE * scale.median().item(), 1e-9))
        return cls(distances[:, 0] / scale[places[:, 0]], places[:, 0], scale)

    @property
    def count(self) -> int:
        """How many training images have a ratio below `COPY_RATIO`."""
        return int((self.ratios < COPY_RATIO).sum())


def measure_closeness(
    images: Blocks,
    mirrored: Blocks,
    train: Blocks,
    duplicates: Duplicates,
    on_images: Callable[[int], object] = lambda count: None,
) -> Closeness:
    """Find each image's nearest training image, as it is or mirrored.

    Args:
        images: N vectors.
        mirrored: N vectors, of the mirrored images.
        train: M vectors of the training images.
        duplicates: of the training images, in the same order.
        on_images: called with the number of images after each block, twice for each image.

    Returns:
        The closeness of each image.
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
    """Return how likely so many copies are, if samples were no closer than held-out images.

    Fisher's exact test, one-sided: the tail of the hypergeometric distribution.

    Args:
        copies: among the samples.
        images: how many samples.
        held_out_copies: among the held-out images.
        held_out_images: how many of them.

    Returns:
        A probability.
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
    """Sum the check up for a report.

    Args:
        samples: of generated images.
        held_out: of images that were not trained on.
        space: the vectors' name, in the keys.

    Returns:
        Flat figures; `..._found` is whether there are more copies than chance explains, and None
        where there are so few images that nothing could tell.
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
