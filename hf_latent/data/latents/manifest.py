"""manifest.json of a latent cache: what the latents were made of, and what each file must be.

It is written twice: without `shards` when encoding begins, whole when every shard is there.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hf_latent.data.images.config import ImagesConfig, parse_resolution
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.shards import shard_ranges
from hf_latent.errors import UserError

FORMAT = "hf_latent latents 1"
SPLITS = ("train", "validation")
# A shard is what one process encodes at a time, and what a killed one loses.
SHARD_BYTES, LEAST_SHARDS = 2**25, 16
MOST_SHARDS = 10**6
BYTES = {"float32": 4, "float16": 2}
# What makes two caches differ, with the word for it.
IDENTITY = {
    "autoencoder_sha256": "autoencoder",
    "image_shape": "resolution or number of channels",
    "preprocessing": "preprocessing",
    "mirrored": "--horizontal_flip",
    "latent_shape": "latent shape",
    "dtype": "dtype",
    "encode_batch_size": "--encode_batch_size",
    "shard_rows": "--shard_rows",
    "id2label": "set of classes",
    "splits": "set of images",
    "format": "version of hf_latent",
}


def choose_shard_rows(rows: int, row_bytes: int, batch_size: int) -> int:
    """Return how many images a shard holds: about 32 MB, or a 16th of all, up to whole batches.

    It depends on nothing but the data, so that any number of processes makes the same files.

    Args:
        rows: of the largest split.
        row_bytes: of one image's tensors.
        batch_size: images encoded at a time.
    """
    rows = min(-(-rows // LEAST_SHARDS), max(1, SHARD_BYTES // row_bytes))
    return -(-rows // batch_size) * batch_size


def describe_split(dataset: ImageDataset) -> dict[str, Any]:
    """Return what stands for the images of a split: their number, contents and labels."""
    labels = dataset.labels
    return {
        "rows": len(dataset),
        "images_sha256": dataset.identity,
        "fingerprint": dataset.fingerprint,
        "labels_sha256": None
        if labels is None
        else hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
    }


def describe_images(splits: ImageSplits) -> dict[str, Any]:
    """Return the part of a manifest that tells of the images."""
    return {
        "image_shape": list(splits.image_shape),
        "preprocessing": splits.train.view(False).preprocessing,
        "id2label": splits.id2label and {str(k): v for k, v in splits.id2label.items()},
        "splits": {
            "train": describe_split(splits.train.view(False)),
            # Of all held-out images, also where some of them are encoded only.
            "validation": describe_split(splits.validation)
            | {"fingerprint": splits.validation_fingerprint},
        },
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a manifest.

    Args:
        path: of manifest.json.

    Returns:
        Its content; every shard that it names has a plain name.

    Raises:
        UserError: if it is missing, damaged or of another format.
    """
    try:
        manifest = json.loads(path.read_text())
        _check_values(manifest)
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} is no latent cache: it has no manifest.json; make one with "
            "train_scripts/encode_latents.py"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): encode again"
        ) from error
    return manifest


def _check_values(manifest: dict[str, Any]) -> None:
    """Make sure of every value that is relied on: a manifest may come from anywhere.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if one is not what it must be.
    """
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
    for key in IDENTITY:
        manifest[key]
    sizes = [*manifest["image_shape"], *manifest["latent_shape"], manifest["shard_rows"]]
    sizes += [manifest["splits"][split]["rows"] for split in SPLITS]
    if not all(type(x) is int and 1 <= x <= 2**40 for x in sizes) or len(sizes) != 9:
        raise ValueError("its sizes are not whole numbers from 1 on")
    texts = [manifest["preprocessing"], manifest["autoencoder_sha256"]]
    texts += [manifest["splits"][split]["fingerprint"] for split in SPLITS]
    if not all(isinstance(text, str) for text in texts) or manifest["dtype"] not in BYTES:
        raise ValueError("its words are none")
    names = manifest["id2label"]
    if names is not None and list(names) != [str(label) for label in range(len(names))]:
        raise ValueError("its classes are not numbered from 0 on")
    shards = manifest.get("shards") or {}
    count = sum(-(-manifest["splits"][x]["rows"] // manifest["shard_rows"]) for x in SPLITS)
    if count > MOST_SHARDS or (shards and len(shards) != count):
        raise ValueError(f"{len(shards)} shards are not the {count} of its splits")
    if shards and shards.keys() != {x for y in SPLITS for x in split_ranges(manifest, y)}:
        raise ValueError("its shards are not those of its splits")
    for shard in shards.values():
        if (
            type(shard["bytes"]) is not int
            or shard["bytes"] < 0
            or not re.fullmatch("[0-9a-f]{64}", shard["sha256"])
        ):
            raise ValueError("a shard has no length or checksum")


def split_ranges(manifest: dict[str, Any], split: str) -> dict[str, range]:
    """Return which rows of a split each of its shards has, by the shard's name, in order."""
    return shard_ranges(manifest["splits"][split]["rows"], manifest["shard_rows"], f"{split}-")


def condition_shapes(manifest: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return what shards have beside `mean` and `std`: the shape of a row of each condition."""
    return {} if manifest["id2label"] is None else {"class_labels": ()}


def check_same(folder: Path, manifest: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Make sure that a cache is the one that a command would make.

    Raises:
        UserError: naming what differs.
    """
    wanted = json.loads(json.dumps(wanted))
    for key, what in IDENTITY.items():
        if manifest[key] != wanted[key]:
            difference = _differ(manifest[key], wanted[key])
            raise UserError(
                f"{folder}/manifest.json is of another {what} ({difference}): choose another "
                "folder, or remove that one"
            )


def check_fits(
    where: str, manifest: dict[str, Any], config: ImagesConfig, autoencoder_sha256: str
) -> None:
    """Make sure that a cache is what a training would have encoded; the images are not needed.

    Args:
        where: the cache, for messages.
        manifest: of the cache.
        config: of the training.
        autoencoder_sha256: `hash_autoencoder` of its autoencoder.

    Raises:
        UserError: naming what differs, and how to mend it.
    """
    where = f"{where}: manifest.json is of another"
    channels, *size = manifest["image_shape"]
    if size != list(parse_resolution(config.resolution)):
        raise UserError(
            f"{where} resolution ({size[0]}x{size[1]}, the run's --resolution is "
            f"{config.resolution}): pass --resolution {size[0]},{size[1]}, or encode again"
        )
    if config.channels not in (None, channels):
        raise UserError(
            f"{where} number of channels ({channels}, the run's is {config.channels}): leave out "
            "--channels, or encode again"
        )
    mode = manifest["preprocessing"].split(" ")[0]
    if mode != config.resize_mode:
        raise UserError(
            f"{where} preprocessing ({mode}, the run's --resize_mode is {config.resize_mode}): "
            f"pass --resize_mode {mode}, or encode again"
        )
    if config.horizontal_flip and not manifest["mirrored"]:
        raise UserError(
            f"{where} --horizontal_flip: it has no mirror images, and a mirrored latent is not the "
            "latent of a mirrored image; encode again with --horizontal_flip true"
        )
    if manifest["autoencoder_sha256"] != autoencoder_sha256:
        name = manifest.get("autoencoder")
        raise UserError(
            f"{where} autoencoder ({name or 'a local one'}, "
            f"{_differ(manifest['autoencoder_sha256'], autoencoder_sha256)}): pass the --vae that "
            "it was encoded with, or encode again"
        )
    held_out = manifest["splits"]["validation"]["fingerprint"]
    if config.validation_fingerprint not in (None, held_out):
        raise UserError(
            f"{where} held-out set (fingerprint {held_out}, not {config.validation_fingerprint}): "
            "leave out --validation_fingerprint, or encode again"
        )


def _differ(have: Any, want: Any) -> str:
    if isinstance(have, str) and len(have) == 64:
        have, want = have[:12], want[:12]
    if isinstance(have, dict) or isinstance(want, dict):
        return "other names, numbers or contents"
    return f"{have}, not {want}"
