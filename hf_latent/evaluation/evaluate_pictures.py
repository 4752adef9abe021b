"""The pictures of an evaluation: samples, reconstructions, closest pairs, duplicates."""

from collections.abc import Sequence
from pathlib import Path

import torch

from hf_latent.data.images.dataset import ImageDataset, evenly_spaced
from hf_latent.data.shards import Shards
from hf_latent.evaluation.images.captioned import HeldOutCaptions
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.measures.memorisation import Closeness, Duplicates
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.evaluation.pictures import image_grid, interleave, labelled_rows, save_picture
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import shown_channels

SAMPLES_PER_CLASS, MOST_CLASSES = 8, 20
UNCONDITIONAL_SAMPLES = 64
PROMPTS, MOST_PER_PROMPT = 16, 8
PAIRS, COLUMNS = 24, 12


def save_samples(path: Path, samples: Shards, pipeline: LatentDiffusionPipeline) -> None:
    """Save the first samples of each class in one row, or without classes the first 64."""
    shown = shown_channels(pipeline.vae)
    if pipeline.num_classes is None:
        rows = torch.arange(min(UNCONDITIONAL_SAMPLES, len(samples)))
        picture = image_grid(samples.read("images", rows) / 255, SAMPLES_PER_CLASS, shown=shown)
    else:
        labels = samples.read("class_labels", torch.arange(len(samples)))
        counts = labels.bincount()
        columns = SAMPLES_PER_CLASS
        if counts.max() < columns:
            columns = int(counts[counts > 0].min())
        classes = (counts >= columns).nonzero().flatten().tolist()[:MOST_CLASSES]
        by_class = [(labels == x).nonzero().flatten()[:columns] for x in classes]
        rows = torch.stack(by_class, dim=1).flatten()
        images = samples.read("images", rows) / 255
        picture = labelled_rows(images, classes, pipeline.id2label or {}, shown)
    save_picture(path, picture)


def save_prompts(
    path: Path,
    samples: Shards,
    captions: HeldOutCaptions,
    held_out: ImageDataset,
    shown: Sequence[int] | None = None,
) -> None:
    """Save samples in one row per prompt, and at its end the held-out image of that caption.

    Args:
        samples: of the first of these captions.
        captions: of the held-out images, each image once.
        held_out: all held-out images.
        shown: as of `to_picture`.
    """
    number = len(captions.rows)
    places = torch.from_numpy(evenly_spaced(min(number, len(samples)), PROMPTS))
    columns = min(MOST_PER_PROMPT, 1 + (len(samples) - 1 - int(places[-1])) // number)
    rows = (places[:, None] + number * torch.arange(columns)).flatten()
    drawn = samples.read("images", rows).unflatten(0, (len(places), columns))
    real = held_out.read_uint8(captions.rows[places])[:, None]
    prompts = captions.prompts
    picture = image_grid(
        torch.cat([drawn, real], dim=1).flatten(0, 1) / 255,
        columns + 1,
        row_labels=[prompts[i] for i in places.tolist()],
        column_labels=[*[""] * columns, "real"],
        shown=shown,
    )
    save_picture(path, picture)


def save_closest(
    path: Path,
    samples: Shards,
    train: ImageDataset,
    closeness: Closeness,
    shown: Sequence[int] | None = None,
) -> None:
    """Save the samples with the smallest ratios, each beside its nearest training image."""
    rows = closeness.ratios.argsort()[:PAIRS]
    originals = train.read_uint8(closeness.places[rows])
    mirrored = closeness.mirrored[rows].view(-1, 1, 1, 1)
    originals = torch.where(mirrored, originals.flip(3), originals)
    pairs = interleave(samples.read("images", rows), originals)
    save_picture(path, image_grid(pairs / 255, COLUMNS, group=2, shown=shown))


def save_duplicates(
    path: Path,
    train: ImageDataset,
    duplicates: Duplicates,
    shown: Sequence[int] | None = None,
) -> None:
    """Save the training images with the smallest ratios, each beside its nearest other one."""
    order = duplicates.ratios.argsort()[: 4 * PAIRS].tolist()
    pairs = list(dict.fromkeys(tuple(sorted((x, int(duplicates.places[x])))) for x in order))
    places = torch.tensor(pairs[:PAIRS]).flatten()
    save_picture(path, image_grid(train.read_uint8(places) / 255, COLUMNS, group=2, shown=shown))


def save_pictures(
    output_dir: Path,
    pipeline: LatentDiffusionPipeline,
    real: RealImages,
    samples: Shards,
    closeness: dict[str, Closeness],
    duplicates: dict[str, Duplicates],
    captioned: tuple[HeldOutCaptions, Shards] | None = None,
) -> None:
    """Save samples.png, reconstructions.png, and for each space the closest and the duplicates.

    Args:
        captioned: the held-out captions, and samples of the first of them, for samples.png.
    """
    shown = shown_channels(pipeline.vae)
    if captioned is None:
        save_samples(output_dir / "samples.png", samples, pipeline)
    else:
        captions, drawn = captioned
        save_prompts(output_dir / "samples.png", drawn, captions, real.held_out, shown)
    images = real.held_out.evenly_spaced(PAIRS).read()
    decoded = torch.cat([reconstruct(pipeline.vae, x) for x in images.split(4)])
    pairs = interleave(images, decoded) / 2 + 0.5
    save_picture(
        output_dir / "reconstructions.png", image_grid(pairs, COLUMNS, group=2, shown=shown)
    )
    for space in closeness:
        path = output_dir / f"closest_by_{space}.png"
        save_closest(path, samples, real.train, closeness[space], shown)
        path = output_dir / f"duplicates_by_{space}.png"
        save_duplicates(path, real.train, duplicates[space], shown)
