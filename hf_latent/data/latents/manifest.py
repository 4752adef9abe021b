"""manifest.json of a latent cache: what the latents depend on, and the checksum of each file.

It is written twice: without `shards` when encoding begins, and whole when every shard exists.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.images.captions import MOST_ALTERNATIVES
from hf_latent.data.images.config import ImagesConfig, describe_values, parse_resolution
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.shards import shard_ranges
from hf_latent.errors import UserError, cause_of

FORMAT = "hf_latent latents 1"
SPLITS = ("train", "validation")
SHARD_FILES = re.compile(r"(train|validation)-\d{6}\.(safetensors|entry\.json)")
CACHE_FILES = re.compile(rf"manifest\.json|{SHARD_FILES.pattern}")
# One process encodes a shard at a time; if it is killed, this shard is lost.
SHARD_BYTES, LEAST_SHARDS = 2**25, 16
MOST_SHARDS = 10**6
BYTES = {"float32": 4, "float16": 2}
# The keys in which two caches may differ, each with its name in messages.
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
    "captions": "set of captions",
    "splits": "set of images",
    "format": "version of hf_latent",
}


def choose_shard_rows(rows: int, row_bytes: int, batch_size: int) -> int:
    """Return how many images a shard holds: a 16th of all, but at most 32 MB, in whole batches.

    The number of processes does not matter: any number writes the same files.

    Args:
        rows: images of the largest split.
        row_bytes: of one image's tensors.
        batch_size: images encoded at a time.
    """
    rows = min(-(-rows // LEAST_SHARDS), max(1, SHARD_BYTES // row_bytes))
    return -(-rows // batch_size) * batch_size


def split_manifest(dataset: ImageDataset) -> dict[str, Any]:
    """Return a split's part of the manifest: the number, content and labels of its images."""
    captions = dataset.caption_ids
    own = {} if captions is None else {"captions_sha256": _hash_tensor(captions)}
    labels = dataset.labels
    return {
        "rows": len(dataset),
        "images_sha256": dataset.identity,
        "fingerprint": dataset.fingerprint,
        "labels_sha256": None if labels is None else _hash_tensor(labels),
        **own,
    }


def _hash_tensor(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def images_manifest(splits: ImageSplits) -> dict[str, Any]:
    """Return the images' part of the manifest."""
    train = splits.train.view(mirrored=False)
    return {
        "image_shape": list(splits.image_shape),
        "preprocessing": train.preprocessing,
        "data_summary": splits.summary.figures(),
        "id2label": splits.id2label and {str(k): v for k, v in splits.id2label.items()},
        "captions": splits.captions and asdict(splits.captions),
        "splits": {
            "train": split_manifest(train),
            # The fingerprint of all held-out images, even if only some of them are encoded.
            "validation": split_manifest(splits.validation)
            | {"fingerprint": splits.validation_fingerprint},
        },
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a manifest; every shard in it has a name that this package writes.

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
        raise UserError(f"{path} is damaged ({cause_of(error)}): encode again") from error
    return manifest


def _check_values(manifest: dict[str, Any]) -> None:
    """Check all values that are used, because a manifest may come from anyone."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
    captions = manifest.setdefault("captions", None)  # manifests of before have none
    for key in IDENTITY:
        manifest[key]
    sizes = [*manifest["image_shape"], *manifest["latent_shape"], manifest["shard_rows"]]
    sizes += [manifest["splits"][split]["rows"] for split in SPLITS]
    if not all(type(x) is int and 1 <= x <= 2**40 for x in sizes) or len(sizes) != 9:
        raise ValueError("its sizes are not positive whole numbers")
    texts = [manifest["preprocessing"], manifest["autoencoder_sha256"]]
    texts += [manifest["splits"][split]["fingerprint"] for split in SPLITS]
    if not all(isinstance(text, str) for text in texts) or manifest["dtype"] not in BYTES:
        raise ValueError("its preprocessing, dtype, autoencoder or fingerprint is not valid")
    names = manifest["id2label"]
    if names is not None and list(names) != [str(label) for label in range(len(names))]:
        raise ValueError("its classes are not numbered from 0 on")
    if captions is not None and not (
        type(captions["alternatives"]) is int
        and 1 <= captions["alternatives"] <= MOST_ALTERNATIVES
        and isinstance(captions["texts"], list)
        and captions["texts"][:1] == [""]
        and all(isinstance(text, str) for text in captions["texts"])
    ):
        raise ValueError("its captions are not texts")
    count = sum(-(-manifest["splits"][x]["rows"] // manifest["shard_rows"]) for x in SPLITS)
    if count > MOST_SHARDS:
        raise ValueError(f"{count:,} shards are too many")
    shards = manifest.get("shards") or {}
    if shards and shards.keys() != {x for y in SPLITS for x in split_ranges(manifest, y)}:
        raise ValueError("its shards are not those of its splits")
    for entry in shards.values():
        if (
            type(entry["bytes"]) is not int
            or entry["bytes"] < 0
            or not re.fullmatch("[0-9a-f]{64}", entry["sha256"])
        ):
            raise ValueError("a shard has no length or checksum")


def split_ranges(manifest: dict[str, Any], split: str) -> dict[str, range]:
    """Return the rows of each shard of a split, by its file name, in order."""
    return shard_ranges(manifest["splits"][split]["rows"], manifest["shard_rows"], f"{split}-")


def condition_shapes(manifest: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image's row of each condition in the shards."""
    captions = manifest["captions"]
    return {
        **({} if manifest["id2label"] is None else {"class_labels": ()}),
        **({} if captions is None else {"caption_ids": (captions["alternatives"],)}),
    }


def hash_latents(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of everything that a cache's latents and their order depend on."""
    keys = ("autoencoder_sha256", "splits", "mirrored", "dtype", "shard_rows", "captions")
    known = [manifest[key] for key in keys if manifest[key] is not None]
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_same(folder: Path, manifest: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare a cache with the one that a command would make.

    Raises:
        UserError: naming the first difference.
    """
    wanted = json.loads(json.dumps(wanted))
    for key, what in IDENTITY.items():
        if manifest[key] != wanted[key]:
            difference = _describe_difference(manifest[key], wanted[key])
            raise UserError(
                f"{folder}/manifest.json has another {what} ({difference}): choose another "
                "folder, or remove that one"
            )


def check_fits(
    where: str, manifest: dict[str, Any], config: ImagesConfig, autoencoder_sha256: str
) -> None:
    """Check that a cache is what a training would encode itself, without opening the images.

    Args:
        where: folder or repository of the cache, for messages.
        config: of the training.
        autoencoder_sha256: `hash_autoencoder` of its autoencoder.

    Raises:
        UserError: naming the first difference, and how to mend it.
    """
    channels, height, width = manifest["image_shape"]
    mode = manifest["preprocessing"].split(" ")[0]
    values = manifest["preprocessing"].partition(" channels")[2]
    own_values = describe_values(config)
    encoder, encoder_name = manifest["autoencoder_sha256"], manifest.get("autoencoder")
    held_out = manifest["splits"]["validation"]["fingerprint"]
    wanted = config.validation_fingerprint
    checks = [
        (
            parse_resolution(config.resolution) == (height, width),
            f"resolution ({height}x{width}, the run's --resolution is {config.resolution})",
            f"pass --resolution {height},{width}",
        ),
        (
            config.channels in (None, channels),
            f"number of channels ({channels}, the run's is {config.channels})",
            "leave out --channels",
        ),
        (
            config.resize_mode == mode,
            f"preprocessing ({mode}, the run's --resize_mode is {config.resize_mode})",
            f"pass --resize_mode {mode}",
        ),
        (
            values == own_values,
            f"preprocessing ({values[2:] or 'default values'}, the run's is "
            f"{own_values[2:] or 'default values'})",
            "pass the --value_range and the --color_profile that it was encoded with",
        ),
        (
            manifest["mirrored"] or not config.horizontal_flip,
            "--horizontal_flip (it has no mirror images, and mirrored latents are not the latents "
            "of a mirrored image)",
            "pass --horizontal_flip false",
        ),
        (
            encoder == autoencoder_sha256,
            f"autoencoder ({encoder_name or 'a local one'}, "
            f"{_describe_difference(encoder, autoencoder_sha256)})",
            "pass the --vae that it was encoded with",
        ),
        (
            wanted in (None, held_out),
            f"set of held-out images (fingerprint {held_out}, not {wanted})",
            "leave out --validation_fingerprint",
        ),
    ]
    for fits, difference, advice in checks:
        if not fits:
            raise UserError(
                f"{where}: manifest.json has another {difference}: {advice}, or encode again"
            )


def _describe_difference(found: Any, wanted: Any) -> str:
    if isinstance(found, str) and len(found) == 64:
        found, wanted = found[:12], wanted[:12]
    if isinstance(found, dict) or isinstance(wanted, dict):
        return "other names, numbers or contents"
    return f"{found}, not {wanted}"
