"""Encode and decode one image at a time if a GPU's memory is too small for a batch."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from hf_latent.models.load import Autoencoder

logger = logging.getLogger(__name__)
T = TypeVar("T")


def slice_if_needed(vae: Autoencoder, call: Callable[[], T]) -> T:
    """Call a function; if the memory is too small, slice the autoencoder and call it again.

    A sliced autoencoder stays sliced. Its images are the same up to rounding.

    Args:
        vae: the autoencoder that the function uses; `enable_slicing` changes it in place.
        call: encodes or decodes a batch.

    Raises:
        torch.OutOfMemoryError: if the memory is also too small for one image.
    """
    cannot_slice = getattr(vae, "use_slicing", True)  # or is sliced already
    try:
        return call()
    except torch.OutOfMemoryError:
        if cannot_slice:
            raise
    # After the `except` block, where the error no longer keeps the failed call's tensors.
    vae.enable_slicing()
    logger.warning(
        "the memory is too small for a batch: the autoencoder takes one image at a time now; a "
        "smaller batch may be faster"
    )
    return call()
