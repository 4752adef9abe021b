"""Autoencoders that overflow in float16 work in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, AutoencoderTiny


@contextmanager
def upcast_where_needed(vae: AutoencoderKL | AutoencoderTiny) -> Iterator[None]:
    """Bring an autoencoder to float32 for a while, where it is in float16 and says it must be.

    `force_upcast` of its configuration says so: Stable Diffusion XL's must, since its activations
    grow beyond what float16 holds, and its images would be black; others may by diffusers' default,
    and are slower so. Weights come back as they were, to the bit. With hooks of diffusers'
    group offloading, which puts weights of its own in place, nothing is changed.

    Args:
        vae: changed in place.

    Yields:
        Nothing; inside, the autoencoder does not overflow.
    """
    needed = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    needed = needed and not hasattr(vae, "_diffusers_hook")
    if needed:
        vae.float()
    try:
        yield
    finally:
        if needed:
            vae.half()
