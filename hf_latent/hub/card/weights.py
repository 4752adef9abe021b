"""The saved weights of a model's part, read from safetensors without making the model."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hf_latent.errors import UserError

# Not a variant in another precision beside them.
_FILE = "diffusion_pytorch_model.safetensors"
_SHARD = re.compile(r"diffusion_pytorch_model-\d{5}-of-\d{5}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class SavedWeights:
    """What a folder of weights has in it.

    Attributes:
        sha256: what `hf_latent.models.frozen.hash_weights` gives for the loaded model, 64 hex
            digits. A model is loaded in float32, whatever it was saved in.
        parameters: number of values.
        size_bytes: of the files.
    """

    sha256: str
    parameters: int
    size_bytes: int


def read_saved_weights(folder: Path) -> SavedWeights:
    """Hash and count the weights of an autoencoder's or a denoiser's folder.

    Args:
        folder: with diffusion_pytorch_model.safetensors, or its shards.

    Returns:
        Their hash, number and size.

    Raises:
        UserError: if there are none, or they cannot be read.
    """
    paths = _weight_paths(folder)
    if not paths:
        raise UserError(f"{folder} has no diffusion_pytorch_model.safetensors: save it again")
    place_of: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                place_of |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): save the model again") from error
    digest, parameters = hashlib.sha256(), 0
    for name in sorted(place_of):
        with safe_open(place_of[name], "pt") as file:
            tensor = file.get_tensor(name)
        if tensor.is_floating_point():
            tensor = tensor.float()
        parameters += tensor.numel()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    size = sum(path.stat().st_size for path in paths)
    return SavedWeights(digest.hexdigest(), parameters, size)


def _weight_paths(folder: Path) -> list[Path]:
    """Return the files that diffusers loads: the shards that an index names, else the one file."""
    index = folder / f"{_FILE}.index.json"
    if not index.is_file():
        return [path for path in [folder / _FILE] if path.is_file()]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} cannot be read ({error}): save the model again") from error
    if other := [name for name in names if not _SHARD.fullmatch(str(name))]:
        raise UserError(f"{index} names {other[0]!r}, which is no file of weights")
    return [folder / name for name in sorted(names)]
