"""Frozen models, and hashes that show whether a model has changed."""

import hashlib
import inspect
import json
from collections.abc import Iterable

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


def freeze(model: nn.Module) -> nn.Module:
    """Put a model in eval mode without gradients, in place, and return it."""
    return model.requires_grad_(False).eval()


def hash_weights(model: nn.Module) -> str:
    """Hash a model's weights and buffers, see `hash_tensors`."""
    return hash_tensors(sorted(model.state_dict().items()))


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash tensors with their names, dtypes and shapes.

    Args:
        tensors: names and tensors, in a fixed order.

    Returns:
        SHA-256 as 64 hex digits, the same on every device.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_autoencoder(vae: ModelMixin) -> str:
    """Hash everything that determines an autoencoder's latents: weights and configuration.

    Entries with their default value are left out, so a version of diffusers with more entries gives
    the same hash. So are `sample_size` and `force_upcast`, which do not change latents.

    Args:
        vae: on any device.

    Returns:
        SHA-256 as 64 hex digits.
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
    """Checks that a model stays frozen while another one trains, also if that one is resumed.

    Args:
        model: the frozen model.
        name: what messages call it.

    Attributes:
        sha256: of its weights.
    """

    def __init__(self, model: nn.Module, name: str = "autoencoder"):
        """Hash the weights."""
        self.model, self.name, self.sha256 = model, name, hash_weights(model)

    def state(self) -> dict[str, str]:
        """Return the state for a checkpoint."""
        return {"sha256": self.sha256}

    def load_state(self, state: dict[str, str]) -> None:
        """Raise ValueError if a checkpoint's state is that of other weights."""
        if state["sha256"] != self.sha256:
            raise ValueError(f"the frozen {self.name} is not the one that training started with")

    def check(self) -> None:
        """Raise RuntimeError if the weights have changed."""
        if hash_weights(self.model) != self.sha256:
            raise RuntimeError(f"the frozen {self.name} changed while the denoiser trained")
