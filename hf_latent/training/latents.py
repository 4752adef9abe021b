"""Encoding a data set once, into a latent cache: by any number of processes, each its own files.

A batch never crosses a file, so neither the number of processes nor where one was killed shows in
the bytes (on one kind of machine, with one number of threads a process).
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_latent.data.image_dataset import ImageDataset
from hf_latent.data.images import ImageSplits, open_images
from hf_latent.data.latents import LatentCache
from hf_latent.data.shards import write_shard
from hf_latent.encode import check_images, normalize_latents
from hf_latent.models.frozen import freeze
from hf_latent.models.load import load_autoencoder
from hf_latent.training.batches import ignore_signals
from hf_latent.training.encode_config import EncodeConfig
from hf_latent.training.latent_files import (
    Work,
    describe_cache,
    describe_file,
    finish_manifest,
    is_whole,
    list_work,
    start_folder,
)
from hf_latent.training.run import check_processes

READ_AHEAD_BYTES = 2**22


@torch.no_grad()
def encode_batch(
    vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images to the mean and deviation of their posteriors, on the denoiser's scale.

    Args:
        vae: a frozen autoencoder.
        images: `(B, C, H, W)` float in [-1, 1].

    Returns:
        Mean and deviation, `(B, c, h, w)` float32 each; the deviation of an AutoencoderTiny is 0.
    """
    check_images(vae, images)
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latents"):
        mean, std = encoded.latents, torch.zeros_like(encoded.latents)
    else:
        mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
    scale = normalize_latents(vae, torch.ones_like(mean[:1]))
    scale = scale - normalize_latents(vae, torch.zeros_like(mean[:1]))
    return normalize_latents(vae, mean).float(), (std * scale).float()


def encode_latents(
    config: EncodeConfig,
    splits: ImageSplits | None = None,
    vae: AutoencoderKL | AutoencoderTiny | None = None,
    accelerator: Accelerator | None = None,
    replace_other: bool = False,
) -> LatentCache:
    """Encode images, and their mirror images where flips are on, into a latent cache.

    Args:
        config: which images, which autoencoder and where to.
        splits: the images, where they are open already.
        vae: the autoencoder, where it is loaded already; it is frozen, and left on its device.
        accelerator: where there is one already.
        replace_other: remove a cache of other images or settings, instead of refusing it.

    Returns:
        The cache. One that was begun goes on, and files that are not what was written are made
        again.

    Raises:
        UserError: if the settings do not fit, the folder holds something else, or the disk is full.
    """
    if accelerator is None:
        accelerator = Accelerator()
        check_processes(accelerator)
    if vae is None:
        vae = load_autoencoder(config.vae)
    if splits is None:
        with accelerator.main_process_first():
            splits = open_images(config, keep_in_memory=False)
    if config.max_validation_samples is not None:
        splits = replace(
            splits, validation=splits.validation.evenly_spaced(config.max_validation_samples)
        )
    freeze(vae).to(accelerator.device)
    folder, manifest = Path(config.output_dir), describe_cache(config, splits, vae)
    if accelerator.is_main_process:
        start_folder(folder, manifest, replace_other)
    accelerator.wait_for_everyone()

    work = list_work(manifest)
    there = [x for x in work if (folder / x.name).is_file()]
    accelerator.wait_for_everyone()  # all have looked before one writes
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    broken = [x for x in there[mine] if not is_whole(folder, x)]
    missing = [x for x in work if x not in there][mine] + broken
    made = {x.name: describe_file(folder / x.name) for x in there[mine] if x not in broken}
    bar = tqdm(
        total=sum(len(x.rows) for x in missing),
        desc="encode",
        unit="image",
        disable=not accelerator.is_main_process or not missing,
    )
    with bar:
        for split, dataset in (("train", splits.train), ("validation", splits.validation)):
            its_work = [x for x in missing if x.split == split]
            mirror = manifest["mirrored"] and split == "train"
            for x, tensors in encode_shards(
                vae, dataset.view(False), its_work, mirror, config, bar
            ):
                write_shard(folder / x.name, tensors)
                made[x.name] = describe_file(folder / x.name)
    shards = {name: values for part in gather_object([made]) for name, values in part.items()}
    if accelerator.is_main_process:
        finish_manifest(folder, manifest, {x.name: shards[x.name] for x in work})
    accelerator.wait_for_everyone()
    return LatentCache(folder)


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
    size, dtype = config.encode_batch_size, getattr(torch, config.dtype)
    # Several batches are read at once: small images are decoded faster without a break.
    image_bytes = 4 * torch.Size(dataset.image_shape).numel()
    ahead = size * max(1, READ_AHEAD_BYTES // (size * image_bytes))
    pieces = [[x.rows[i : i + ahead] for i in range(0, len(x.rows), ahead)] for x in work]
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=[list(rows) for file in pieces for rows in file],
        num_workers=config.dataloader_num_workers,
        worker_init_fn=ignore_signals,
    )
    read = iter(loader)
    for file, its_pieces in zip(work, pieces, strict=True):
        tensors: dict[str, list[torch.Tensor]] = {"mean": [], "std": [], "class_labels": []}
        for batch in islice(read, len(its_pieces)):
            for images in batch["images"].split(size):
                views = [images, images.flip(3)] if mirror else [images]
                moments = [encode_batch(vae, x.to(vae.device)) for x in views]
                for name, x in zip(("mean", "std"), zip(*moments, strict=True), strict=True):
                    tensors[name].append(torch.stack(x, 1).to("cpu", dtype))
                bar.update(len(images))
            if "class_labels" in batch:
                tensors["class_labels"].append(batch["class_labels"])
        yield file, {name: torch.cat(parts) for name, parts in tensors.items() if parts}
