"""Encoding a data set once, into a latent cache: by any number of processes, each its own files.

A batch never crosses a file, so neither the number of processes nor where one was killed shows in
the bytes (on one kind of machine).
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.latents.cache import LatentCache
from hf_latent.data.latents.manifest import read_manifest
from hf_latent.models.frozen import freeze
from hf_latent.models.load import load_autoencoder
from hf_latent.output import check_output_dir
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.files import (
    Work,
    describe_cache,
    finish_manifest,
    list_work,
    read_entry,
    start_folder,
    write_file,
)
from hf_latent.training.latents.posteriors import encode_batches
from hf_latent.training.run.accelerator import PROCESS_GROUP, check_processes, together
from hf_latent.training.run.batches import ignore_signals

READ_AHEAD_BYTES = 2**22


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
    with together(accelerator):
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
    with together(accelerator):
        if accelerator.is_main_process:
            start_folder(folder, manifest, replace_other)

    work = list_work(manifest)
    there = [x for x in work if (folder / x.name).is_file()]
    recorded = read_manifest(folder / "manifest.json").get("shards") or {}
    accelerator.wait_for_everyone()  # all have looked before one writes
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    with together(accelerator):
        found = {x.name: read_entry(folder, recorded, x.name) for x in there[mine]}
        made = {name: entry for name, entry in found.items() if entry is not None}
        broken = [x for x in there[mine] if x.name not in made]
        missing = [x for x in work if x not in there][mine] + broken
        made |= encode_files(vae, splits, missing, config, accelerator)
    images = sum(len(x.rows) for part in gather_object([missing]) for x in part)
    shards = {name: entry for part in gather_object([made]) for name, entry in part.items()}
    with together(accelerator):
        if accelerator.is_main_process and (images or not recorded):
            finish_manifest(folder, manifest, {x.name: shards[x.name] for x in work})
    cache = LatentCache(folder)
    accelerator.print(
        f"{folder}: latents {manifest['latent_shape']} of {len(cache.train):,} training and "
        f"{len(cache.validation):,} held-out images in {len(work)} files, {images:,} encoded now"
    )
    return cache, images


def encode_files(
    vae: AutoencoderKL | AutoencoderTiny,
    splits: ImageSplits,
    missing: list[Work],
    config: EncodeConfig,
    accelerator: Accelerator,
) -> dict[str, dict[str, Any]]:
    """Make the files that this process has to make.

    Args:
        vae: frozen.
        splits: the images.
        missing: the files.
        config: where to, and how.
        accelerator: its first process shows how far it is.

    Returns:
        Their entries in the manifest, by name.
    """
    folder, made = Path(config.output_dir), {}
    bar = tqdm(
        total=sum(len(x.rows) for x in missing),
        desc="encode",
        unit="image",
        disable=not accelerator.is_main_process or not missing,
    )
    with bar:
        for split, dataset in (("train", splits.train), ("validation", splits.validation)):
            its_work = [x for x in missing if x.split == split]
            mirror = config.horizontal_flip and split == "train"
            for x, tensors in encode_shards(
                vae, dataset.view(False), its_work, mirror, config, bar
            ):
                made[x.name] = write_file(folder, x.name, tensors)
    return made


class ImagePieces(torch.utils.data.Dataset):
    """Images in pieces, each read at once: many small images are slow as a tensor each.

    Args:
        dataset: the images.
        pieces: which images each piece has.
    """

    def __init__(self, dataset: ImageDataset, pieces: list[range]):
        """Read nothing yet."""
        self.dataset, self.pieces = dataset, pieces

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.pieces)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the images of one piece, `(n, C, H, W)` float32 in [-1, 1]."""
        return self.dataset.read(torch.tensor(self.pieces[number]))


@torch.no_grad()
def encode_shards(
    vae: AutoencoderKL | AutoencoderTiny,
    dataset: ImageDataset,
    work: list[Work],
    mirror: bool,
    config: EncodeConfig,
    bar: tqdm,
) -> Iterator[tuple[Work, dict[str, torch.Tensor]]]:
    """Encode the images of some files.

    Args:
        vae: frozen.
        dataset: without anything random.
        work: the files.
        mirror: encode every image's mirror image too.
        config: batch size, dtype and reading processes.
        bar: is told of every batch.

    Yields:
        Each file with its tensors: `mean` and `std`, `(n, views, c, h, w)`, and `class_labels`.
    """
    size = config.encode_batch_size
    # Several batches are read at once: small images are decoded faster without a break.
    image_bytes = 4 * torch.Size(dataset.image_shape).numel()
    ahead = size * max(1, READ_AHEAD_BYTES // (size * image_bytes))
    pieces = [x.rows[i : i + ahead] for x in work for i in range(0, len(x.rows), ahead)]
    loader: DataLoader = DataLoader(
        ImagePieces(dataset, pieces),
        batch_size=None,
        num_workers=config.dataloader_num_workers,
        worker_init_fn=ignore_signals,
    )
    batches = (images for piece in loader for images in piece.split(size))
    # Closed here, as a signal that comes while a generator is forgotten is forgotten with it.
    with closing(encode_batches(vae, batches, mirror, getattr(torch, config.dtype))) as encoded:
        for file in work:
            parts = []
            for moments in islice(encoded, -(-len(file.rows) // size)):
                parts.append(moments)
                bar.update(len(moments[0]))
            mean, std = (torch.cat(x) for x in zip(*parts, strict=True))
            tensors = {"mean": mean, "std": std}
            if dataset.labels is not None:
                tensors["class_labels"] = dataset.labels[file.rows.start : file.rows.stop]
            yield file, tensors
