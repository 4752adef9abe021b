"""Proof that a frozen model stays as it was."""

import hashlib
import inspect
import json
from collections.abc import Iterable

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


def freeze(model: nn.Module) -> nn.Module:
    """Put a model in eval mode, without gradients.

    Args:
        model: changed in place.

    Returns:
        The same model.
    """
    return model.requires_grad_(False).eval()


def hash_weights(model: nn.Module) -> str:
    """Hash every weight and buffer of a model, with names, dtypes and shapes.

    Args:
        model: on any device.

    Returns:
        SHA-256 as 64 hex digits, the same on every device.
    """
    return hash_tensors(sorted(model.state_dict().items()))


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash tensors with their names, dtypes and shapes.

    Args:
        tensors: with their names, in the order of these; on any device.

    Returns:
        SHA-256 as 64 hex digits, the same on every device.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_autoencoder(vae: ModelMixin) -> str:
    """Hash all that an autoencoder's latents depend on: its weights and its configuration.

    The scale of the latents may stand in the configuration only. What has its default value is left
    out, so that a version of diffusers with one more entry gives the same hash; and so is the size
    of the images, which changes no latent.

    Args:
        vae: on any device.

    Returns:
        SHA-256 as 64 hex digits, the same however it was loaded.
    """
    defaults = {k: v.default for k, v in inspect.signature(type(vae).__init__).parameters.items()}
    config = {
        key: value
        for key, value in vae.config.items()
        if not key.startswith("_")
        and key not in ("sample_size", "force_upcast")
        and json.dumps(value) != json.dumps(defaults.get(key), default=str)
    }
    text = json.dumps([type(vae).__name__, config, hash_weights(vae)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class FrozenWeights:
    """Holds a training to the frozen model that it began with, through every resume.

    Args:
        model: the frozen model.
    """

    def __init__(self, model: nn.Module):
        """Hash the weights."""
        self.sha256 = hash_weights(model)

    def state(self) -> dict[str, str]:
        """Return what a checkpoint keeps."""
        return {"sha256": self.sha256}

    def load_state(self, state: dict[str, str]) -> None:
        """Compare with a checkpoint's `state`.

        Raises:
            ValueError: if the checkpoint was made with other weights.
        """
        if state["sha256"] != self.sha256:
            raise ValueError("the frozen autoencoder is not the one that it was trained with")
