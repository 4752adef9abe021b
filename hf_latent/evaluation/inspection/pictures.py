"""The pictures of an inspection: the worst images, the latent, noise in it, and a plot."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.evaluation.pictures import image_grid, interleave, save_picture
from hf_latent.models.load import Autoencoder
from hf_latent.output import replaced_whole
from hf_latent.pipeline.decode import decode_latents, shown_channels
from hf_latent.pipeline.encode import encode_images

WORST, ROWS = 12, 6
MOST_CHANNELS = 16
# In deviations of the latent. At the last level the noise is as strong as the latent.
NOISE_LEVELS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
STEPS = 8


def channel_maps(latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return each latent channel as a grey image: -3 deviations are black, 3 deviations are white.

    Args:
        latents: `(B, c, h, w)` float, near unit variance.
        height: of the grey images; each latent value becomes a rectangle.
        width: of the grey images.

    Returns:
        `(B, min(c, 16), 1, height, width)` float in [0, 1].
    """
    shown = (latents[:, :MOST_CHANNELS] / 6 + 0.5).clamp(0, 1)
    return torch.nn.functional.interpolate(shown, (height, width), mode="nearest")[:, :, None]


@torch.no_grad()
def channel_rows(
    vae: Autoencoder, images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Return rows of an image, its reconstruction and each latent channel.

    Args:
        images: `(B, C, H, W)` float in [-1, 1].
        mean: `(c,)` float, the latent's mean in each channel.
        std: `(c,)` float, the latent's deviation in each channel.

    Returns:
        `(B, 2 + min(c, 16), C, H, W)` float in [0, 1].
    """
    latents = encode_images(vae, images.to(vae.device), sample_posterior=False).float().cpu()
    mean, std = (x.float().view(1, -1, 1, 1) for x in (mean, std))
    latents = (latents - mean) / std.clamp(min=1e-6)
    maps = channel_maps(latents, *images.shape[2:]).expand(-1, -1, images.shape[1], -1, -1).clone()
    if images.shape[1] == 4 and shown_channels(vae) is None:
        maps[:, :, 3] = 1  # opaque
    pair = torch.stack([images, reconstruct(vae, images).clamp(-1, 1)], dim=1) / 2 + 0.5
    return torch.cat([pair, maps], dim=1)


@torch.no_grad()
def interpolation_rows(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Return rows of decoded latents on a straight line between the latents of two images.

    Args:
        images: `(2 B, C, H, W)` float in [-1, 1]; row i goes from image i to image B + i.

    Returns:
        `(B, 8, C, H, W)` float near [0, 1].
    """
    latents = encode_images(vae, images.to(vae.device), sample_posterior=False)
    start, end = latents.chunk(2)
    rows = [
        decode_latents(vae, torch.lerp(start, end, step / (STEPS - 1))) for step in range(STEPS)
    ]
    return torch.stack(rows, dim=1).float().cpu() / 2 + 0.5


@torch.no_grad()
def latent_noise_rows(
    vae: Autoencoder, images: torch.Tensor, std: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return rows of a reconstruction without noise and with growing noise in its latent.

    Args:
        images: `(B, C, H, W)` float in [-1, 1].
        std: `(c,)` float, the latent's deviation in each channel.

    Returns:
        `(B, 1 + len(NOISE_LEVELS), C, H, W)` float near [0, 1].
    """
    latents = encode_images(vae, images.to(vae.device), sample_posterior=False)
    noise = torch.randn(latents.shape, generator=generator) * std.float().view(1, -1, 1, 1)
    noise = noise.to(latents)
    rows = [decode_latents(vae, latents + level * noise) for level in (0.0, *NOISE_LEVELS)]
    return torch.stack(rows, dim=1).float().cpu() / 2 + 0.5


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
        held_out: the N inspected images.
        psnr_db: `(N,)`, of each of them.
        report: has the latent's mean and deviation and the plot's figures.
    """
    mean, std = (torch.tensor(report[name]) for name in ("latent_mean", "latent_std"))
    generator, shown = torch.Generator().manual_seed(0), shown_channels(vae)

    def in_batches(images: torch.Tensor, show: Callable[..., torch.Tensor]) -> torch.Tensor:
        return torch.cat([show(vae, batch) for batch in images.split(batch_size)])

    images = held_out.subset(psnr_db.argsort()[:WORST].numpy()).read()
    worst = interleave(images, in_batches(images, reconstruct)) / 2 + 0.5
    few = held_out.evenly_spaced(ROWS).read()
    channels = in_batches(few, lambda vae, x: channel_rows(vae, x, mean, std))
    noisy = in_batches(few, lambda vae, x: latent_noise_rows(vae, x, std, generator))
    start, end = held_out.evenly_spaced(2 * ROWS).read().tensor_split(2)
    between = [
        interpolation_rows(vae, torch.cat(pair))
        for pair in zip(start.split(1), end.split(1), strict=False)
    ]
    columns = {
        "channels": ["image", "decoded", *(f"channel {x}" for x in range(channels.shape[1] - 2))],
        "interpolation": [f"{x / (STEPS - 1):.0%}" for x in range(STEPS)],
        "latent_noise": ["no noise", *(f"{level:.2f}" for level in NOISE_LEVELS)],
    }
    rows = {"channels": channels, "interpolation": torch.cat(between), "latent_noise": noisy}
    for name, labels in columns.items():
        group = 1 if name == "channels" else None
        picture = image_grid(rows[name].flatten(0, 1), len(labels), (), labels, group, shown)
        save_picture(output_dir / f"{name}.png", picture)
    save_picture(output_dir / "worst.png", image_grid(worst, 8, group=2, shown=shown))
    plot_frequencies(output_dir / "frequencies.png", report)


def plot_frequencies(path: Path, report: dict[str, Any]) -> None:
    """Plot the share that is kept of details by size, and of layout, edges and noise."""
    from matplotlib.figure import Figure

    # A detail of n pixels is a wave of n pixels: 1 / n cycles per pixel.
    *sizes, _ = (f"{1 / edge:.3g}" for edge in report["band_edges_cycles_per_pixel"])
    between = [f"{larger} to\n{smaller}" for larger, smaller in pairwise(sizes)]
    by_size = zip(
        [f"over\n{sizes[0]}", *between, f"under\n{sizes[-1]}"], report["band_kept"], strict=True
    )
    by_kind = {
        "layout": report["layout_agreement"],
        "edges": report["edge_agreement"],
        "added noise": report["noise_survival"],
    }
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 3))
    for axes, label, kept in (
        (left, "by size of detail, in pixels", dict(by_size)),
        (right, "by kind", by_kind),
    ):
        bars = axes.bar(list(kept), [max(0.0, value or 0.0) for value in kept.values()], width=0.6)
        axes.bar_label(bars, fmt="{:.0%}", padding=2)
        axes.set_xlabel(label)
        axes.tick_params(axis="x", labelsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    left.set(ylim=(0, 1.1), yticks=[0, 0.25, 0.5, 0.75, 1], ylabel="kept")
    left.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    with replaced_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
