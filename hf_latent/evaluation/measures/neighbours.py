"""Nearest neighbours in feature space, block by block: memory is constant in the images."""

from collections.abc import Callable, Iterable, Iterator

import torch

from hf_latent.data.device import fastest_device
from hf_latent.errors import UserError

# Feature vectors in blocks, `(n, d)` float each; iterated over more than once.
Blocks = Iterable[torch.Tensor]


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return squared distances `(n, m)` of vectors `(n, d)` and `(m, d)`, inexact near 0."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_(min=0)


def finite(features: torch.Tensor) -> torch.Tensor:
    """Return features; UserError if one is NaN or infinite, because all figures would be wrong."""
    if not features.isfinite().all():
        raise UserError(
            "the feature network gave values that are not finite, so nothing can be measured: "
            "choose another --feature_extractor"
        )
    return features


def on_device(blocks: Blocks) -> Iterator[torch.Tensor]:
    """Move blocks to the accelerator, if there is one."""
    device = fastest_device()
    return (block.to(device) for block in blocks)


def center_of(reference: Blocks) -> torch.Tensor:
    """Return the mean of the first block, `(d,)`.

    Subtracted from all vectors, it leaves distances unchanged, and products of shorter vectors lose
    fewer digits.
    """
    return next(iter(on_device(reference))).mean(0)


@torch.no_grad()
def nearest_neighbours(
    queries: Blocks,
    reference: Blocks,
    k: int,
    exclude_self: bool = False,
    on_queries: Callable[[int], object] = lambda count: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k nearest reference vectors of each query.

    Args:
        queries: N vectors.
        reference: M vectors, M at least k (k + 1 with `exclude_self`).
        k: the number of neighbours.
        exclude_self: queries and reference are the same vectors; none is its own neighbour.
        on_queries: called with the number of queries after each block.

    Returns:
        Distances `(N, k)` float32, ascending and exact also near 0, and the neighbours' places in
        the reference, `(N, k)` int64; both on the CPU.
    """
    distances, places = [], []
    center = center_of(reference)
    first_query = 0
    for query in map(finite, on_device(queries)):
        shifted = query - center
        best = query.new_full((len(query), k), torch.inf)
        best_places = torch.full((len(query), k), -1, device=query.device)
        first = 0
        for block in on_device(reference):
            squared = squared_distances(shifted, block - center)
            if exclude_self:
                itself = torch.arange(len(query), device=query.device) + first_query - first
                inside = (itself >= 0) & (itself < len(block))
                squared[inside, itself[inside]] = torch.inf
            # Few rows change after the first blocks. The margin covers inexact distances.
            bound = best[:, -1].square() * 1.001 + 1e-6 * shifted.square().sum(1)
            rows = (squared.amin(1) <= bound).nonzero().flatten()
            near, chosen = squared[rows].topk(min(k, len(block)), dim=1, largest=False)
            exact = (query[rows, None] - block[chosen]).norm(dim=2)
            exact[near.isinf()] = torch.inf
            both = torch.cat([best[rows], exact], dim=1)
            both_places = torch.cat([best_places[rows], chosen + first], dim=1)
            best[rows], order = both.topk(k, dim=1, largest=False)
            best_places[rows] = both_places.gather(1, order)
            first += len(block)
        distances.append(best.cpu())
        places.append(best_places.cpu())
        first_query += len(query)
        on_queries(len(query))
    return torch.cat(distances).float(), torch.cat(places)
