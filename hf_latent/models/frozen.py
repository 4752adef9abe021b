"""Proof that a frozen model stays as it was."""

import hashlib

import torch
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
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
