"""The saved weights of a model's part, read from safetensors without making the model."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hf_latent.errors import UserError

# One file, or the shards of a large model; not a variant in another precision beside them.
_FILE = re.compile(r"diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors")


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
    paths = [path for path in sorted(folder.glob("*.safetensors")) if _FILE.fullmatch(path.name)]
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
