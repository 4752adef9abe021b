"""What the autoencoder alone loses: no denoiser can do better than its reconstructions."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.pixels import to_uint8
from hf_latent.data.shards import Shards, write_shards
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.evaluation.measures.generation import FrechetDistance, frechet_distance
from hf_latent.evaluation.measures.neighbours import Blocks
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions, reconstruct
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.decode import shown_channels


def measure_autoencoder(
    vae: Autoencoder,
    held_out: ImageDataset,
    held_out_vectors: Blocks,
    extractor: FeatureExtractor,
    batch_size: int,
    bar: tqdm,
) -> dict[str, Any]:
    """Compare held-out images with their reconstructions from the posterior's mean.

    Args:
        held_out: images that it was not trained on.
        held_out_vectors: of these images, from `extractor`.

    Returns:
        Flat figures: PSNR, SSIM, and the Fréchet distance (rFD). Both sets of the rFD come from the
        same images, so it has less bias than the distance of two independent sets: do not compare
        it with one.
    """
    distance = FrechetDistance()

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in DataLoader(held_out, batch_size):
            images = batch["images"]
            reconstructions = reconstruct(vae, images)
            distance.update(extractor(to_uint8(reconstructions)), real=False)
            bar.update(len(images))
            yield images / 2 + 0.5, reconstructions / 2 + 0.5

    box, shown = held_out.unpadded_box(), shown_channels(vae)
    figures = asdict(measure_reconstructions(pairs(), box, shown))
    for block in held_out_vectors:
        distance.update(block, real=True)
    figures["fd"] = distance.compute()
    return {f"reconstruction_{k}": v for k, v in figures.items() if v is not None}


@torch.no_grad()
def measure_floor(
    vae: Autoencoder,
    other: ImageDataset,
    reference: Blocks,
    extractor: FeatureExtractor,
    batch_size: int,
    seed: int,
    bar: tqdm,
) -> float:
    """Return the Fréchet distance that a perfect denoiser would reach.

    Real images are encoded, sampled from their posteriors and decoded, as if a denoiser had drawn
    their latents from the true distribution. They are compared with other real images.

    Args:
        other: real images that are not in the reference.
        reference: vectors of as many real images, from `extractor`.
        seed: of the posterior samples.
    """
    generator = torch.Generator().manual_seed(seed)

    def vectors() -> Iterator[torch.Tensor]:
        for batch in DataLoader(other, batch_size):
            decoded = reconstruct(vae, batch["images"], generator, sample_posterior=True)
            bar.update(len(decoded))
            yield extractor(to_uint8(decoded))

    return frechet_distance(vectors(), reference)


@torch.no_grad()
def write_perfect_samples(
    vae: Autoencoder,
    other: ImageDataset,
    folder: Path,
    extractor: FeatureExtractor,
    batch_size: int,
    seed: int,
    bar: tqdm,
) -> Shards:
    """Write the images that a perfect denoiser would draw, as in `measure_floor`.

    Args:
        other: real images that are not in the reference, in random order.
        folder: the shards'; a killed run's images there are kept, others are replaced.
        extractor: of their features.
        seed: of the posterior samples.

    Returns:
        Shards of `images` `(N, C, H, W)` uint8, of `features`, and of `class_labels` if there are
        any.
    """
    labels = other.labels

    def make_rows(rows: range) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed + rows.start)
        parts = [
            to_uint8(reconstruct(vae, other.read(part), generator, sample_posterior=True))
            for part in torch.tensor(rows).split(batch_size)
        ]
        images, numbers = torch.cat(parts), torch.tensor(rows)
        features = torch.cat([extractor(part) for part in images.split(batch_size)])
        named = {} if labels is None else {"class_labels": torch.as_tensor(labels)[numbers]}
        return {"images": images, "features": features, **named}

    identity = {
        "seed": seed,
        "images": other.fingerprint,
        "vae": hash_weights(vae),
        "preprocessing": extractor.preprocessing,
    }
    return write_shards(folder, len(other), make_rows, identity, bar.update, replace_other=True)
