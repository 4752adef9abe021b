"""Interpolated FID: how real the images between neighbouring latents look."""

from collections.abc import Iterator

import torch
from torch.nn.functional import normalize, softmax
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.pixels import to_uint8
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.measures.neighbours import Blocks, nearest_neighbours
from hf_latent.evaluation.measures.reconstruction import decode_batch, encode_batch
from hf_latent.models.load import Autoencoder

NEIGHBOURS = 10
BLOCK = 100  # latents that are compared at once


def spherical_midpoints(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the spherical interpolation halfway between vectors a and b, `(N, d)` each.

    With the angle t between them it is `sin(t/2) / sin(t) (a + b)` (Shoemake 1985, section 3.3).
    The factor is one over `2 cos(t/2)`, the length of the sum of their directions.
    """
    directions = normalize(first, dim=1) + normalize(second, dim=1)
    return (first + second) / directions.norm(dim=1, keepdim=True).clamp(min=1e-6)


def interpolate_to_neighbours(
    latents: torch.Tensor, train: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Move each latent halfway to one of its nearest training latents.

    The ten nearest by angle are candidates. One is drawn, with the probabilities
    `softmax(-mean squared difference)`.

    Args:
        latents: `(N, c, h, w)` float.
        train: `(M, c, h, w)` float.
        generator: of the draws, on the CPU.

    Returns:
        `(N, c, h, w)` float.
    """
    flat, reference = latents.flatten(1), train.flatten(1)
    directions, references = (
        [normalize(block, dim=1) for block in x.split(BLOCK)] for x in (flat, reference)
    )
    count = min(NEIGHBOURS, len(reference))
    _, places = nearest_neighbours(directions, references, count)
    moved = []
    for block, nearest in zip(flat.split(BLOCK), places.split(BLOCK), strict=True):
        candidates = reference[nearest]
        errors = (block[:, None] - candidates).square().mean(2)
        chosen = torch.multinomial(softmax(-errors, dim=1), 1, generator=generator)[:, 0]
        moved.append(spherical_midpoints(block, candidates[torch.arange(len(block)), chosen]))
    return torch.cat(moved).view_as(latents)


@torch.no_grad()
def measure_ifid(
    vae: Autoencoder,
    held_out: ImageDataset,
    train: ImageDataset,
    held_out_vectors: Blocks,
    extractor: FeatureExtractor,
    batch_size: int,
    seed: int,
    bar: tqdm,
) -> float:
    """Return the interpolated FID (iFID, Xu et al. 2026, arXiv 2603.05630).

    Latents of held-out images move halfway to a near training latent and are decoded. iFID is the
    Fréchet distance of the decoded images to the held-out images. What the paper leaves open is as
    in its authors' program: posterior samples, ten neighbours by angle of which one is drawn, and
    spherical interpolation. The neighbours are the nearer, the more training latents there are: so
    compare figures at equal numbers of both images only.

    Args:
        held_out: images that the autoencoder was not trained on.
        train: images whose latents are the neighbours; all latents are kept in memory.
        held_out_vectors: of the held-out images, from `extractor`.
        seed: of the posterior samples and of the neighbours that are drawn.
    """
    generator = torch.Generator().manual_seed(seed)

    def sample_latents(images: ImageDataset) -> torch.Tensor:
        parts = []
        for batch in DataLoader(images, batch_size):
            parts.append(encode_batch(vae, batch["images"], generator, True).float().cpu())
            bar.update(len(parts[-1]))
        return torch.cat(parts)

    def vectors(latents: torch.Tensor) -> Iterator[torch.Tensor]:
        for block in latents.split(batch_size):
            yield extractor(to_uint8(decode_batch(vae, block.to(vae.device))))
            bar.update(len(block))

    latents, neighbours = sample_latents(held_out), sample_latents(train)
    moved = interpolate_to_neighbours(latents, neighbours, generator)
    return frechet_distance(vectors(moved), held_out_vectors)
