"""A latent cache of random numbers, and the tensors that are in it."""

import json
from pathlib import Path

import torch

from hf_latent.data.latents.cache import LatentBatch
from hf_latent.data.latents.manifest import FORMAT
from hf_latent.data.shards import shard_ranges, write_manifest, write_shard

SHAPE = (2, 3, 2)
VALIDATION_ROWS = 7


def write_latents(
    folder: Path,
    rows: int = 23,
    shard_rows: int = 5,
    mirrored: bool = True,
    classes: bool = True,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> dict[str, dict[str, torch.Tensor]]:
    """Write a whole cache; the class label of an image is its number."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    whole, splits, shards = {}, {}, {}
    for split, count, views in (
        ("train", rows, 2 if mirrored else 1),
        ("validation", VALIDATION_ROWS, 1),
    ):
        tensors = {
            "mean": torch.randn(count, views, *SHAPE, generator=generator).to(dtype),
            "std": torch.rand(count, views, *SHAPE, generator=generator).to(dtype),
        }
        if classes:
            tensors["class_labels"] = torch.arange(count)
        whole[split] = tensors
        splits[split] = {
            "rows": count,
            "images_sha256": "5a" * 32,
            "fingerprint": "0123456789abcdef",
            "labels_sha256": None,
        }
        for file, place in shard_ranges(count, shard_rows, f"{split}-").items():
            part = {name: x[place.start : place.stop] for name, x in tensors.items()}
            shards[file] = write_shard(folder / file, part)
    manifest = {
        "format": FORMAT,
        "autoencoder": "ada/autoencoder",
        "autoencoder_sha256": "a5" * 32,
        "data": "fashion_mnist",
        "image_shape": [1, 24, 16],
        "preprocessing": "pad to 24x16, 1 channels",
        "id2label": {str(n): f"image {n}" for n in range(rows)} if classes else None,
        "captions": None,
        "splits": splits,
        "latent_shape": list(SHAPE),
        "mirrored": mirrored,
        "dtype": str(dtype).removeprefix("torch."),
        "shard_rows": shard_rows,
        "encode_batch_size": 5,
        "latents_mean": [0.0, 0.0],
        "latents_std": [1.0, 1.0],
    }
    write_manifest(folder, manifest | changes, shards)
    return whole


def assert_same_batch(found: LatentBatch, expected: LatentBatch, tolerance: float = 0.0) -> None:
    assert found.conditions.keys() == expected.conditions.keys()
    for name, condition in expected.conditions.items():
        assert torch.equal(found.conditions[name], condition), name
    for name in ("mean", "std"):
        one, other = (getattr(x.posteriors, name) for x in (found, expected))
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def read_json(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def flip_a_bit(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def cut_short(path: Path, count: int = 3) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
