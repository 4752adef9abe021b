"""The saved weights of a model's part, read from safetensors without making the model."""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hf_latent.errors import UserError
from hf_latent.models.frozen import hash_tensors
from hf_latent.output import read_json

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
    parameters = 0
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                parameters += sum(prod(file.get_slice(name).get_shape()) for name in names)
                place_of |= dict.fromkeys(names, path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): save the model again") from error
    sha256 = hash_tensors((name, _read_tensor(place_of[name], name)) for name in sorted(place_of))
    return SavedWeights(sha256, parameters, sum(path.stat().st_size for path in paths))


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    """Read a tensor as a model has it that is loaded in float32."""
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.float() if tensor.is_floating_point() else tensor


def _weight_paths(folder: Path) -> list[Path]:
    """Return the files that diffusers loads: the shards that an index names, else the one file."""
    index = folder / f"{_FILE}.index.json"
    if not index.is_file():
        return [path for path in [folder / _FILE] if path.is_file()]
    weight_map = read_json(index).get("weight_map")
    names = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
    if other := [name for name in names if not _SHARD.fullmatch(name)]:
        raise UserError(f"{index} names {other[0]!r}, which is no file of weights")
    return [folder / name for name in sorted(names)]
