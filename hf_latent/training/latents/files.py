"""Start and finish the folder of a latent cache."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.manifest import (
    BYTES,
    FORMAT,
    SHARD_FILES,
    check_same,
    choose_shard_rows,
    images_manifest,
    read_manifest,
)
from hf_latent.data.shards import write_manifest
from hf_latent.errors import UserError
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.models.frozen import hash_autoencoder
from hf_latent.models.load import Autoencoder, is_own
from hf_latent.models.presets import measure_compression
from hf_latent.output import remove_written
from hf_latent.pipeline.encode import LatentPosteriors
from hf_latent.training.latents.config import EncodeConfig


def cache_manifest(config: EncodeConfig, splits: ImageSplits, vae: Autoencoder) -> dict[str, Any]:
    """Return the manifest that a cache starts with.

    Raises:
        UserError: if the images do not fit the autoencoder.
    """
    latent_shape = measure_compression(vae, splits.image_shape).latent_shape
    values = 2 * (2 if config.horizontal_flip else 1) * torch.Size(latent_shape).numel()
    rows = config.shard_rows or choose_shard_rows(
        len(splits.train), BYTES[config.dtype] * values, config.encode_batch_size
    )
    return {
        "format": FORMAT,
        # Hub names only: a path means nothing on another machine.
        "autoencoder": None if is_own(config.vae) else config.vae,
        "autoencoder_sha256": hash_autoencoder(vae),
        "data": None if Path(config.data).exists() else config.data,
        **images_manifest(splits),
        "latent_shape": list(latent_shape),
        "mirrored": config.horizontal_flip,
        "dtype": config.dtype,
        "shard_rows": rows,
        "encode_batch_size": config.encode_batch_size,
    }


def start_folder(folder: Path, manifest: dict[str, Any], replace_other: bool = False) -> None:
    """Start a cache's folder, or check that the existing one has the same manifest.

    Args:
        manifest: as `cache_manifest` returns.
        replace_other: remove the files of another cache instead of refusing it.

    Raises:
        UserError: if the folder holds something else or cannot be written.
    """
    if (folder / "manifest.json").exists():
        try:
            check_same(folder, read_manifest(folder / "manifest.json"), manifest)
            return
        except UserError:
            if not replace_other:
                raise
            # The manifest stays until the new one replaces it, so that a killed removal is
            # continued by the next run.
            remove_written(folder, SHARD_FILES)
    elif folder.exists():
        half_written = folder / ".manifest.tmp.json"
        if not folder.is_dir() or set(folder.iterdir()) - {half_written}:
            raise UserError(f"{folder} has something else in it: choose another folder")
    write_manifest(folder, manifest)


def sum_file(path: Path) -> list[list[float]]:
    """Return the sums of a shard's latents, as `sum_latents`."""
    with safe_open(path, "pt") as file:
        mean, std = (file.get_tensor(name).float().flatten(0, 1) for name in ("mean", "std"))
    return sum_latents(LatentPosteriors(mean, std)).tolist()


def finish_folder(
    folder: Path,
    manifest: dict[str, Any],
    shards: dict[str, dict[str, Any]],
    sums: list[list[list[float]]],
) -> None:
    """Write the final manifest of a cache, with the statistics of its training latents.

    Args:
        folder: the cache's folder, with all its files.
        manifest: the manifest that it started with.
        shards: the entries of all files, in order.
        sums: as `sum_file` returns, of the training images' files in order.
    """
    # 7 digits: the last digits of float64 depend on the number of threads.
    statistics = measure_latents(torch.tensor(sums, dtype=torch.float64).sum(0))
    latents = {"latents_mean": statistics.mean, "latents_std": statistics.std}
    rounded = {name: [float(f"{x:.7g}") for x in y.tolist()] for name, y in latents.items()}
    write_manifest(folder, manifest | rounded, shards)
