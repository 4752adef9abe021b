"""Encoding a data set once, into a latent cache: by any number of processes, each its own files.

A batch never crosses a file, so neither the number of processes nor where one was killed shows in
the bytes (on one kind of machine).
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.latents.cache import LatentCache
from hf_latent.data.latents.manifest import SPLITS, read_manifest, split_ranges
from hf_latent.data.shards import find_shard, write_shard
from hf_latent.models.frozen import freeze
from hf_latent.models.load import load_autoencoder
from hf_latent.output import check_output_dir
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.files import describe_cache, finish_folder, start_folder, sum_file
from hf_latent.training.latents.posteriors import encode_batches
from hf_latent.training.run.accelerator import PROCESS_GROUP, check_processes, raise_everywhere
from hf_latent.training.run.batches import ignore_signals

READ_AHEAD_BYTES = 2**22
T = TypeVar("T")


def encode_latents(
    config: EncodeConfig,
    splits: ImageSplits | None = None,
    vae: AutoencoderKL | AutoencoderTiny | None = None,
    accelerator: Accelerator | None = None,
    replace_other: bool = False,
) -> tuple[LatentCache, int]:
    """Encode images, and their mirror images where flips are on, into a latent cache.

    Args:
        config: which images, which autoencoder and where to.
        splits: the images, where they are open already.
        vae: the autoencoder, where it is loaded already; it is frozen, and left on its device.
        accelerator: where there is one already.
        replace_other: remove a cache of other images or settings, instead of refusing it.

    Returns:
        The cache, and how many images were encoded now, mirror images not counted. A cache that was
        begun goes on, and files that are not what was written are made again.

    Raises:
        UserError: if the settings do not fit, the folder holds something else, or the disk is full.
    """
    if accelerator is None:
        accelerator = Accelerator(kwargs_handlers=[PROCESS_GROUP])
        check_processes(accelerator)
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            check_output_dir(config.output_dir, overwrite=True)
    if vae is None:
        vae = load_autoencoder(config.vae)
    if splits is None:
        with accelerator.main_process_first():
            splits = open_images(config, keep_in_memory=False)
        if splits.bad_images:
            accelerator.print(f"{splits.bad_images} images that cannot be decoded are left out")
    if config.max_validation_samples is not None:
        splits = replace(
            splits, validation=splits.validation.evenly_spaced(config.max_validation_samples)
        )
    freeze(vae).to(accelerator.device)
    folder, manifest = Path(config.output_dir), describe_cache(config, splits, vae)
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            start_folder(folder, manifest, replace_other)

    recorded = read_manifest(folder / "manifest.json").get("shards") or {}
    ranges = {split: split_ranges(manifest, split) for split in SPLITS}
    names = [name for files in ranges.values() for name in files]
    mine = names[accelerator.process_index :: accelerator.num_processes]
    with raise_everywhere(accelerator):
        found = {name: find_shard(folder / name, recorded.get(name)) for name in mine}
        entries = {name: entry for name, entry in found.items() if entry}
        missing = {
            split: {name: rows for name, rows in files.items() if name in found.keys() - entries}
            for split, files in ranges.items()
        }
        made = encode_files(vae, splits, folder, missing, config, accelerator)
    entries, made = _gather(entries | made), _gather(made)
    if made or not recorded:
        with raise_everywhere(accelerator):
            sums = {name: sum_file(folder / name) for name in mine if name in ranges["train"]}
        sums = _gather(sums)
        with raise_everywhere(accelerator):
            if accelerator.is_main_process:
                shards = {name: entries[name] for name in names}
                finish_folder(folder, manifest, shards, [sums[name] for name in ranges["train"]])
    images = sum(entry["rows"] for entry in made.values())
    cache = LatentCache(folder)
    accelerator.print(
        f"{folder}: latents {manifest['latent_shape']} of {len(cache.train):,} training and "
        f"{len(cache.validation):,} held-out images in {len(names)} files, {images:,} encoded now"
    )
    return cache, images


def _gather(mine: dict[str, T]) -> dict[str, T]:
    """Bring together what the processes have of their files."""
    return {name: x for part in gather_object([mine]) for name, x in part.items()}


def encode_files(
    vae: AutoencoderKL | AutoencoderTiny,
    splits: ImageSplits,
    folder: Path,
    missing: dict[str, dict[str, range]],
    config: EncodeConfig,
    accelerator: Accelerator,
) -> dict[str, dict[str, Any]]:
    """Make the files that this process has to make.

    Args:
        vae: frozen.
        splits: the images.
        folder: of the cache.
        missing: by split the files' names, and which images each has.
        config: how.
        accelerator: its first process shows how far it is.

    Returns:
        Their entries in the manifest, by name.
    """
    entries, count = {}, sum(len(rows) for files in missing.values() for rows in files.values())
    show = accelerator.is_main_process and count
    with tqdm(total=count, desc="encode", unit="image", disable=not show) as bar:
        for split, dataset in (("train", splits.train), ("validation", splits.validation)):
            names, ranges = list(missing[split]), list(missing[split].values())
            mirror = config.horizontal_flip and split == "train"
            shards = encode_shards(
                vae,
                dataset.view(False),
                ranges,
                mirror,
                config.encode_batch_size,
                getattr(torch, config.dtype),
                config.dataloader_num_workers,
                bar.update,
            )
            for name, tensors in zip(names, shards, strict=True):
                entries[name] = write_shard(folder / name, tensors)
    return entries


@torch.no_grad()
def encode_shards(
    vae: AutoencoderKL | AutoencoderTiny,
    dataset: ImageDataset,
    ranges: list[range],
    mirror: bool,
    batch_size: int,
    dtype: torch.dtype,
    num_workers: int,
    on_images: Callable[[int], object],
) -> Iterator[dict[str, torch.Tensor]]:
    """Encode the images of some files.

    Args:
        vae: frozen.
        dataset: without anything random.
        ranges: which images each file has.
        mirror: encode every image's mirror image too.
        batch_size: images at a time.
        dtype: of mean and deviation.
        num_workers: processes that read images.
        on_images: called with the number of images after every batch.

    Yields:
        Each file's tensors: `mean` and `std`, `(n, views, c, h, w)`, and the images' conditions.
    """
    # Several batches are read at once, as one tensor: a tensor an image is slow for small images.
    image_bytes = 4 * torch.Size(dataset.image_shape).numel()
    ahead = batch_size * max(1, READ_AHEAD_BYTES // (batch_size * image_bytes))
    pieces = [piece for rows in ranges for piece in torch.tensor(rows).split(ahead)]
    loader: DataLoader = DataLoader(
        pieces,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=dataset.read,  # type: ignore[arg-type]
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
    )
    batches = (images for piece in loader for images in piece.split(batch_size))
    # Closed explicitly: Python swallows exceptions raised while a generator is collected.
    with closing(encode_batches(vae, batches, mirror, dtype)) as encoded:
        for rows in ranges:
            parts = []
            for moments in islice(encoded, -(-len(rows) // batch_size)):
                parts.append(moments)
                on_images(len(moments[0]))
            mean, std = (torch.cat(x) for x in zip(*parts, strict=True))
            yield {"mean": mean, "std": std, **dataset.conditions(rows)}
