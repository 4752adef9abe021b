"""Encode images into a latent cache; each of several processes writes its own files.

A batch never spans two files, so the bytes do not depend on the number of processes or on kills
(on the same kind of machine).
"""

import logging
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_latent.command import run_command
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images, with_values_of
from hf_latent.data.latents.cache import LatentCache
from hf_latent.data.latents.manifest import SPLITS, read_manifest, split_ranges
from hf_latent.data.shards import find_shard, write_shard
from hf_latent.lock import locks_output
from hf_latent.messages import progress_bar
from hf_latent.models.frozen import freeze
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.output import check_output_dir
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.files import (
    cache_manifest,
    finish_folder,
    start_folder,
    sum_file,
)
from hf_latent.training.latents.posteriors import encode_batches
from hf_latent.training.run.accelerator import (
    create_accelerator,
    first_process_first,
    raise_everywhere,
)
from hf_latent.training.run.batches import init_reader
from hf_latent.training.run.stop import StopSignal

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES = 2**22
T = TypeVar("T")


@locks_output
def encode_latents(
    config: EncodeConfig,
    splits: ImageSplits | None = None,
    vae: Autoencoder | None = None,
    accelerator: Accelerator | None = None,
    replace_other: bool = False,
) -> tuple[LatentCache, int]:
    """Encode images, and with flips their mirror images, into a latent cache.

    A started cache is continued, and damaged files are written again.

    Args:
        config: the images, the autoencoder and the cache's folder.
        splits: the images, if they are open already.
        vae: the autoencoder, if it is loaded already. It is frozen and moved to the device.
        accelerator: by default a new one.
        replace_other: remove a cache of other images or settings instead of refusing it.

    Returns:
        The cache, and the number of images that were encoded now, without mirror images.

    Raises:
        UserError: if the settings do not fit, the folder holds something else, or the disk is full.
    """
    if accelerator is None:
        accelerator = create_accelerator()
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            check_output_dir(config.output_dir, overwrite=True)
    if vae is None:
        vae = load_autoencoder(config.vae)
    config = with_values_of(vae, config)
    if splits is None:
        with first_process_first(accelerator):
            splits = open_images(config, keep_in_memory=False)
    if config.max_validation_samples is not None:
        splits = replace(
            splits, validation=splits.validation.evenly_spaced(config.max_validation_samples)
        )
    freeze(vae).to(accelerator.device)
    folder, manifest = Path(config.output_dir), cache_manifest(config, splits, vae)
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
        to_make = found.keys() - entries
        missing = {
            split: {name: rows for name, rows in files.items() if name in to_make}
            for split, files in ranges.items()
        }
        made: dict[str, dict[str, Any]] = {}
        count = sum(len(rows) for files in missing.values() for rows in files.values())
        show = accelerator.is_main_process and count
        with progress_bar(total=count, desc="encode", unit="image", disable=not show) as progress:
            for split, files in missing.items():
                images = getattr(splits, split).view(False)
                mirror = config.horizontal_flip and split == "train"
                made |= _encode_split(vae, images, folder, files, mirror, config, progress)
    entries, made = _gather(entries | made), _gather(made)
    if made or not recorded:
        with raise_everywhere(accelerator):
            sums = {name: sum_file(folder / name) for name in mine if name in ranges["train"]}
        sums = _gather(sums)
        with raise_everywhere(accelerator):
            if accelerator.is_main_process:
                shards = {name: entries[name] for name in names}
                finish_folder(folder, manifest, shards, [sums[name] for name in ranges["train"]])
    encoded = sum(entry["rows"] for entry in made.values())
    cache = LatentCache(folder)
    logger.info(
        f"{folder}: latents {manifest['latent_shape']} of {len(cache.train):,} training and "
        f"{len(cache.validation):,} held-out images in {len(names)} files, {encoded:,} encoded now"
    )
    return cache, encoded


def _gather(mine: dict[str, T]) -> dict[str, T]:
    """Merge the dicts of all processes."""
    return {name: x for part in gather_object([mine]) for name, x in part.items()}


@torch.no_grad()
def _encode_split(
    vae: Autoencoder,
    dataset: ImageDataset,
    folder: Path,
    files: dict[str, range],
    mirror: bool,
    config: EncodeConfig,
    progress: tqdm,
) -> dict[str, dict[str, Any]]:
    """Write files, given by name with their rows; return their entries in the manifest."""
    # Reading several batches as one tensor is faster than one small tensor per image.
    batch_size, image_bytes = config.encode_batch_size, 4 * torch.Size(dataset.image_shape).numel()
    ahead = batch_size * max(1, READ_AHEAD_BYTES // (batch_size * image_bytes))
    pieces = [piece for rows in files.values() for piece in torch.tensor(rows).split(ahead)]
    loader: DataLoader = DataLoader(
        pieces,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=dataset.read,  # type: ignore[arg-type]
        num_workers=config.dataloader_num_workers,
        worker_init_fn=init_reader,
    )
    batches = (images for piece in loader for images in piece.split(batch_size))
    dtype, entries = getattr(torch, config.dtype), {}
    # Closed explicitly: Python swallows exceptions raised while a generator is collected.
    with closing(encode_batches(vae, batches, mirror, dtype)) as encoded:
        for name, rows in files.items():
            parts = []
            for moments in islice(encoded, -(-len(rows) // batch_size)):
                parts.append(moments)
                progress.update(len(moments[0]))
            mean, std = (torch.cat(x) for x in zip(*parts, strict=True))
            tensors = {"mean": mean, "std": std, **dataset.conditions(rows)}
            entries[name] = write_shard(folder / name, tensors)
    return entries


def run(config: EncodeConfig) -> None:
    """Encode until the end or a signal, which keeps the finished files."""
    StopSignal("stopped: run the same command to continue; finished files are kept")
    encode_latents(config)


if __name__ == "__main__":
    run_command(EncodeConfig, run)
