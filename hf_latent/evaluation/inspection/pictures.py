"""The pictures and the plot of an inspection."""

from pathlib import Path
from typing import Any

import torch

from hf_latent.data.image_dataset import ImageDataset
from hf_latent.evaluation.inspection.latent_pictures import (
    NOISE_LEVELS,
    STEPS,
    channels_picture,
    interpolation_picture,
    noisy_latents,
)
from hf_latent.evaluation.pictures import image_grid, interleave
from hf_latent.evaluation.reconstruction import reconstruct
from hf_latent.models.load import Autoencoder
from hf_latent.output import replaced_whole

WORST, ROWS = 12, 6


def read_images(dataset: ImageDataset) -> torch.Tensor:
    """Read all of a few images, `(N, C, H, W)` float in [-1, 1]."""
    return torch.stack([dataset[row]["images"] for row in range(len(dataset))])


def save_pictures(
    output_dir: Path,
    vae: Autoencoder,
    held_out: ImageDataset,
    psnr_db: torch.Tensor,
    figures: dict[str, Any],
    seed: int,
) -> None:
    """Save worst.png, channels.png, interpolation.png, latent_noise.png and frequencies.png.

    Args:
        output_dir: where to.
        vae: the autoencoder.
        held_out: the images that were looked at.
        psnr_db: `(N,)`, of each of them.
        figures: of the report, for the plot.
        seed: of the noise.
    """
    worst = psnr_db.argsort()[:WORST]
    images = read_images(held_out.subset(worst.numpy()))
    few = read_images(held_out.evenly_spaced(ROWS))
    ends = read_images(held_out.evenly_spaced(2 * ROWS))
    ends = ends[: len(ends) // 2 * 2]
    channels = channels_picture(vae, few)
    noisy = noisy_latents(vae, few, torch.Generator().manual_seed(seed))
    pictures = {
        "worst": (interleave(images, reconstruct(vae, images)) / 2 + 0.5, 8),
        "channels": (channels.flatten(0, 1), channels.shape[1]),
        "interpolation": (interpolation_picture(vae, ends).flatten(0, 1), STEPS),
        "latent_noise": (noisy.flatten(0, 1), 1 + len(NOISE_LEVELS)),
    }
    for name, (shown, columns) in pictures.items():
        with replaced_whole(output_dir / f"{name}.png") as temporary:
            image_grid(shown, columns).save(temporary)
    plot_frequencies(output_dir / "frequencies.png", figures)


def plot_frequencies(path: Path, figures: dict[str, Any]) -> None:
    """Plot what is kept of each frequency band, beside edges, layout and noise."""
    from matplotlib.figure import Figure

    edges = figures["band_edges_cycles_per_pixel"]
    names = [f"to {edge:.3g}" for edge in edges]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    bands, parts = figure.subplots(1, 2, width_ratios=(3, 2))
    bands.bar(names, [max(0.0, kept) for kept in figures["band_kept"]])
    bands.set(ylim=(0, 1), xlabel="cycles a pixel", title="kept, by spatial frequency")
    bands.tick_params(axis="x", rotation=45)
    kept = {
        "layout": figures["layout_agreement"],
        "edges": figures["edge_agreement"],
        "added\npixel noise": figures["noise_survival"],
    }
    parts.bar(list(kept), [max(0.0, value) for value in kept.values()])
    parts.set(ylim=(0, 1), title="kept, by kind")
    with replaced_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
