"""The files of a latent cache while it is made: which there must be, and which are there whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError, safe_open

from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.cache import LatentPosteriors
from hf_latent.data.latents.manifest import (
    BYTES,
    FORMAT,
    SPLITS,
    check_same,
    choose_shard_rows,
    describe_images,
    hash_file,
    read_manifest,
    shard_rows_by_name,
)
from hf_latent.data.latents.shards import write_shard
from hf_latent.errors import UserError
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.models.frozen import hash_autoencoder
from hf_latent.models.presets import measure_compression
from hf_latent.output import write_json
from hf_latent.training.latents.config import EncodeConfig


@dataclass(frozen=True)
class Work:
    """One file to make.

    Attributes:
        name: of the file.
        split: train or validation.
        rows: which images of the split.
    """

    name: str
    split: str
    rows: range


def describe_cache(
    config: EncodeConfig, splits: ImageSplits, vae: AutoencoderKL | AutoencoderTiny
) -> dict[str, Any]:
    """Return the manifest that encoding begins with.

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
        # Names only: a path tells of this machine, and nothing to another.
        "autoencoder": None if Path(config.vae).exists() else config.vae,
        "autoencoder_sha256": hash_autoencoder(vae),
        "data": None if Path(config.data).exists() else config.data,
        **describe_images(splits),
        "latent_shape": list(latent_shape),
        "mirrored": config.horizontal_flip,
        "dtype": config.dtype,
        "shard_rows": rows,
        "encode_batch_size": config.encode_batch_size,
    }


def start_folder(folder: Path, manifest: dict[str, Any], replace_other: bool = False) -> None:
    """Begin a cache's folder, or make sure that the one which is there is the same cache.

    Args:
        folder: of the cache.
        manifest: that it is to have.
        replace_other: remove another cache, instead of refusing it.

    Raises:
        UserError: if it is another, or cannot be written.
    """
    if (folder / "manifest.json").exists():
        try:
            check_same(folder, read_manifest(folder / "manifest.json"), manifest)
            return
        except UserError:
            if not replace_other:
                raise
            for split in SPLITS:
                for kind in ("safetensors", "entry.json"):
                    for file in folder.glob(f"{split}-*.{kind}"):
                        file.unlink()
            # The manifest last: killed before, the next run removes the rest.
            (folder / "manifest.json").unlink()
    half_written = folder / ".manifest.tmp.json"
    if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - {half_written}):
        raise UserError(f"{folder} has something else in it: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): choose another") from error
    _write_json(folder / "manifest.json", manifest)


def list_work(manifest: dict[str, Any]) -> list[Work]:
    """Return all files of a cache, in order."""
    size = manifest["shard_rows"]
    return [
        Work(name, split, range(number * size, number * size + rows))
        for split in SPLITS
        for number, (name, rows) in enumerate(shard_rows_by_name(manifest, split).items())
    ]


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest, and the sums of its latents."""
    with safe_open(path, "pt") as file:
        mean, std = (file.get_tensor(name).float() for name in ("mean", "std"))
    posteriors = LatentPosteriors(mean.flatten(0, 1), std.flatten(0, 1))
    return {
        "rows": len(mean),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "sums": sum_latents([posteriors]).tolist(),
    }


def write_file(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write a file of an unfinished cache, and its entry beside it.

    Returns:
        The entry: what the next run takes the file for whole by.

    Raises:
        UserError: if the disk is full.
    """
    write_shard(folder / name, tensors)
    entry = describe_file(folder / name)
    _write_json(folder / _entry_name(name), entry)
    return entry


def read_entry(folder: Path, recorded: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the entry of a file that is what was written; None: it has to be made.

    Args:
        folder: of the cache.
        recorded: the entries of a finished manifest.
        name: of the file.
    """
    path = folder / name
    try:
        entry = recorded.get(name) or json.loads((folder / _entry_name(name)).read_text())
        if hash_file(path) != entry["sha256"]:
            return None
        return entry if "sums" in entry else describe_file(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _entry_name(name: str) -> str:
    return f"{Path(name).stem}.entry.json"


def _write_json(path: Path, values: dict[str, Any]) -> None:
    try:
        write_json(path, values)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room, and run the same command "
            "again; what was written before is kept"
        ) from error


def finish_manifest(
    folder: Path, manifest: dict[str, Any], shards: dict[str, dict[str, Any]]
) -> None:
    """Write the manifest of a cache whose files are all there.

    The statistics are those of posterior samples of the training images, in 7 digits: the last
    ones of float64 depend on the number of threads.
    """
    sums = [
        torch.tensor(x["sums"], dtype=torch.float64)
        for name, x in shards.items()
        if name.startswith("train-")
    ]
    statistics = measure_latents(torch.stack(sums).sum(0))
    _write_json(
        folder / "manifest.json",
        {
            **manifest,
            "latents_mean": [float(f"{x:.7g}") for x in statistics.mean.tolist()],
            "latents_std": [float(f"{x:.7g}") for x in statistics.std.tolist()],
            "shards": {
                name: {key: value for key, value in x.items() if key != "sums"}
                for name, x in shards.items()
            },
        },
    )
    for name in shards:
        (folder / _entry_name(name)).unlink(missing_ok=True)
