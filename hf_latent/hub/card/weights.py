"""The saved weights of an autoencoder or a denoiser, read without creating the model."""

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from hf_latent.hub.model_files import shard_names, weights_file
from hf_latent.models.frozen import hash_tensors

_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class SavedWeights:
    """What a folder of weights holds.

    Attributes:
        sha256: what `hf_latent.models.frozen.hash_weights` returns for the loaded model, 64 hex
            digits. Weights of any saved precision are loaded as float32.
        parameters: number of values.
        size_bytes: of the files.
    """

    sha256: str
    parameters: int
    size_bytes: int


def read_saved_weights(folder: Path) -> SavedWeights:
    """Hash and count the weights of an autoencoder's or a denoiser's folder.

    Args:
        folder: with diffusion_pytorch_model.safetensors, or its shards and their index. Variants
            beside them are ignored.

    Raises:
        UserError: if a file of weights is missing or damaged.
    """
    index = folder / f"{_FILE}.index.json"
    # diffusers too prefers the shards if there is an index.
    paths = [folder / name for name in (shard_names(index) if index.is_file() else [_FILE])]
    file_of: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in paths:
            file = stack.enter_context(weights_file(path))
            file_of |= dict.fromkeys(file.keys(), file)
        parameters = sum(prod(x.get_slice(name).get_shape()) for name, x in file_of.items())
        sha256 = hash_tensors(
            (name, _as_loaded(file_of[name].get_tensor(name))) for name in sorted(file_of)
        )
    return SavedWeights(sha256, parameters, sum(path.stat().st_size for path in paths))


def _as_loaded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
