"""The pictures and the plot of an inspection."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.images.dataset import ImageDataset
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


def save_pictures(
    output_dir: Path,
    vae: Autoencoder,
    held_out: ImageDataset,
    psnr_db: torch.Tensor,
    report: dict[str, Any],
    batch_size: int,
) -> None:
    """Save worst.png, channels.png, interpolation.png, latent_noise.png and frequencies.png.

    Args:
        output_dir: where to.
        vae: the autoencoder.
        held_out: the images that were looked at.
        psnr_db: `(N,)`, of each of them.
        report: the latent's mean and deviation and the plot's figures are taken from it.
        batch_size: images at a time.
    """
    mean, std = (torch.tensor(report[name]) for name in ("latent_mean", "latent_std"))
    generator = torch.Generator().manual_seed(0)

    def in_batches(images: torch.Tensor, show: Callable[..., torch.Tensor]) -> torch.Tensor:
        return torch.cat([show(vae, batch) for batch in images.split(batch_size)])

    images = held_out.subset(psnr_db.argsort()[:WORST].numpy()).read()
    worst = interleave(images, in_batches(images, reconstruct)) / 2 + 0.5
    few = held_out.evenly_spaced(ROWS).read()
    channels = in_batches(few, lambda vae, x: channels_picture(vae, x, mean, std))
    noisy = in_batches(few, lambda vae, x: noisy_latents(vae, x, std, generator))
    start, end = held_out.evenly_spaced(2 * ROWS).read().tensor_split(2)
    between = [
        interpolation_picture(vae, torch.cat(pair))
        for pair in zip(start.split(1), end.split(1), strict=False)
    ]
    pictures = {
        "worst": (worst, 8),
        "channels": (channels.flatten(0, 1), channels.shape[1]),
        "interpolation": (torch.cat(between).flatten(0, 1), STEPS),
        "latent_noise": (noisy.flatten(0, 1), 1 + len(NOISE_LEVELS)),
    }
    for name, (shown, columns) in pictures.items():
        with replaced_whole(output_dir / f"{name}.png") as temporary:
            image_grid(shown, columns).save(temporary)
    plot_frequencies(output_dir / "frequencies.png", report)


def plot_frequencies(path: Path, report: dict[str, Any]) -> None:
    """Plot what is kept of each frequency band, beside edges, layout and noise."""
    from matplotlib.figure import Figure

    edges = report["band_edges_cycles_per_pixel"]
    names = [f"to {edge:.3g}" for edge in edges]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    bands, parts = figure.subplots(1, 2, width_ratios=(3, 2))
    bands.bar(names, [max(0.0, kept or 0.0) for kept in report["band_kept"]])
    bands.set(ylim=(0, 1), xlabel="cycles a pixel", title="kept, by spatial frequency")
    bands.tick_params(axis="x", rotation=45)
    kept = {
        "layout": report["layout_agreement"],
        "edges": report["edge_agreement"],
        "added\npixel noise": report["noise_survival"],
    }
    parts.bar(list(kept), [max(0.0, value or 0.0) for value in kept.values()])
    parts.set(ylim=(0, 1), title="kept, by kind")
    with replaced_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
