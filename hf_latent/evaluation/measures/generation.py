"""How close generated images are to real ones, from feature vectors of both."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from hf_latent.data.shards import Selection
from hf_latent.evaluation.measures.neighbours import (
    Blocks,
    center_of,
    finite,
    nearest_neighbours,
    on_device,
    squared_distances,
)

PRECISION_RECALL_K = 3  # Kynkäänniemi et al. 2019
DENSITY_COVERAGE_K = 5  # Naeem et al. 2020
FD_SUBSETS = 5
KID_SUBSET_IMAGES = 1000


class _GivenFeatures(nn.Identity):
    """Gives torchmetrics, which expects a network, features that are already computed."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


class FrechetDistance:
    """Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

    Only sums are kept, in float64. The distance has a bias that depends on the number of images:
    compare distances at equal numbers only, and report that of real images to other real images.
    """

    def __init__(self) -> None:
        """Start without features."""
        self.metric: FrechetInceptionDistance | None = None

    def update(self, features: torch.Tensor, real: bool) -> None:
        """Add features `(n, d)` float to one of the two sets; UserError if one is not finite."""
        if self.metric is None:
            self.metric = FrechetInceptionDistance(feature=_GivenFeatures(features.shape[1]))
            self.metric.set_dtype(torch.float64)
        self.metric.update(finite(features).cpu().double(), real=real)

    def compute(self) -> float:
        """Return the distance: 0 for equal means and covariances.

        Raises:
            RuntimeError: if a set has fewer than two images.
        """
        if self.metric is None:
            raise RuntimeError("there are no features yet")
        return self.metric.compute().item()


def frechet_distance(features: Blocks, reference: Blocks) -> float:
    """Return the Fréchet distance of two sets of features, see `FrechetDistance`."""
    distance = FrechetDistance()
    for real, blocks in ((True, reference), (False, features)):
        for block in blocks:
            distance.update(block, real)
    return distance.compute()


def kernel_distances(features: Sequence[Blocks], reference: Sequence[Blocks]) -> list[float]:
    """Return the kernel distance (KID, Bińkowski et al. 2018) of each pair of subsets.

    The distance is the unbiased squared maximum mean discrepancy with the cubic kernel
    `(x.y / d + 1)^3`. Its expectation does not depend on the subsets' size.

    Args:
        features: subsets of n vectors of length d, n at least 2.
        reference: as many subsets of n vectors.
    """

    def whole(blocks: Blocks) -> torch.Tensor:
        return torch.cat([finite(block).double() for block in blocks])

    return [
        poly_mmd(whole(real), whole(fake)).item()
        for fake, real in zip(features, reference, strict=True)
    ]


@torch.no_grad()
def measure_manifold(features: Blocks, reference: Blocks) -> dict[str, float]:
    """Measure how two sets of images cover each other.

    The ball of an image reaches to its k-th nearest neighbour in its own set. Precision and recall:
    Kynkäänniemi et al. 2019, equations 1 to 3, k = 3; density and coverage: Naeem et al. 2020,
    equations 4 and 6, k = 5. Like the Fréchet distance they depend on the number of images.

    Args:
        features: N vectors of generated images, N above 5.
        reference: M vectors of real images, M above 5.

    Returns:
        `precision`, the share of generated images in the ball of a real one; `recall`, the share of
        real images in the ball of a generated one; `density`, the mean number of real balls that a
        generated image lies in, divided by k, about 1 for equal distributions; and `coverage`, the
        share of real balls with a generated image in them.
    """
    largest = max(PRECISION_RECALL_K, DENSITY_COVERAGE_K)
    radii = nearest_neighbours(reference, reference, largest, exclude_self=True)[0].square()
    distances, _ = nearest_neighbours(features, features, PRECISION_RECALL_K, exclude_self=True)
    own_radius = distances[:, -1].square()
    in_real = torch.zeros(len(own_radius), dtype=torch.bool)
    balls, recalled, covered = 0, 0, 0
    count, center = 0, center_of(reference)
    for real in (block - center for block in on_device(reference)):
        small, large = (
            radii[count : count + len(real), k - 1].to(real)
            for k in (PRECISION_RECALL_K, DENSITY_COVERAGE_K)
        )
        count += len(real)
        is_recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        is_covered = is_recalled.clone()
        start = 0
        for generated in (block - center for block in on_device(features)):
            squared = squared_distances(generated, real)
            # Subtract the product's rounding error: otherwise copies of duplicates, whose balls
            # have radius 0, would lie outside.
            squared -= 1e-6 * (generated.square().sum(1).amax() + real.square().sum(1).amax())
            rows = slice(start, start + len(generated))
            start += len(generated)
            in_real[rows] |= (squared <= small).any(1).cpu()
            is_recalled |= (squared <= own_radius[rows].to(real)[:, None]).any(0)
            within = squared <= large
            balls += int(within.sum())
            is_covered |= within.any(0)
        recalled += int(is_recalled.sum())
        covered += int(is_covered.sum())
    return {
        "precision": in_real.float().mean().item(),
        "recall": recalled / count,
        "density": balls / (DENSITY_COVERAGE_K * len(own_radius)),
        "coverage": covered / count,
    }


def compare_sets(features: Selection, reference: Selection, prefix: str = "") -> dict[str, Any]:
    """Measure all of these figures of two equally large sets, with their spread.

    Args:
        features: N vectors of one set in random order, N at least 10.
        reference: N vectors of real images in random order.
        prefix: before each key.

    Returns:
        Flat figures: `fd` at N; `fd_subset_values` of five disjoint subsets of N/5, whose spread
        counts, since their bias is larger than at N; mean and deviation of `kid` over five or more
        disjoint subsets of at most 1,000; and the figures of `measure_manifold`.
    """
    values = [
        frechet_distance(*pair)
        for pair in zip(features.subsets(FD_SUBSETS), reference.subsets(FD_SUBSETS), strict=True)
    ]
    count = max(FD_SUBSETS, -(-len(features) // KID_SUBSET_IMAGES))
    kernel = kernel_distances(features.subsets(count), reference.subsets(count))
    figures = {
        "fd": frechet_distance(features, reference),
        "fd_subset_images": len(features) // FD_SUBSETS,
        "fd_subset_values": values,
        "fd_subset_std": stdev(values),
        "kid": mean(kernel),
        "kid_std": stdev(kernel),
        "kid_subsets": count,
        "kid_subset_images": len(features) // count,
        **measure_manifold(features, reference),
    }
    return {prefix + name: value for name, value in figures.items()}
