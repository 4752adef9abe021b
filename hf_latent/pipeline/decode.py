"""Step 4 of 4: latents to images."""

import torch

from .autoencoders import Autoencoder, denormalize_latents, find_kind, latent_channels


def decode_latents(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents into images.

    Args:
        vae: the autoencoder of these latents.
        latents: `(B, c, h, w)`, on the denoiser's scale (unit variance).

    Returns:
        `(B, C, h*f, w*f)` in the autoencoder's dtype, near [-1, 1] and not clamped.

    Raises:
        ValueError: if the latents' channels are not the autoencoder's.
    """
    channels = latent_channels(vae)
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(
            f"latents must have the shape (B, {channels}, h, w) "
            f"for this autoencoder, not {tuple(latents.shape)}"
        )
    images = vae.decode(denormalize_latents(vae, latents.to(vae.dtype))).sample
    return images * 2 - 1 if find_kind(vae).unit_pixels else images
