"""Step 4 of 4: latents to images."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny


def denormalize_latents(
    vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor
) -> torch.Tensor:
    """Convert latents `(B, c, h, w)` from the denoiser's scale to the decoder's.

    `latents / scaling_factor * latents_std + latents_mean + shift_factor`, the exact inverse of
    `normalize_latents` in encode.py.
    """
    latents = latents / vae.config.scaling_factor
    if vae.config.get("latents_std") is not None:
        latents = latents * latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
    if vae.config.get("latents_mean") is not None:
        latents = latents + latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    if vae.config.get("shift_factor"):
        latents = latents + vae.config.shift_factor
    return latents


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents into images.

    Args:
        vae: the autoencoder of these latents.
        latents: `(B, c, h, w)`, on the denoiser's scale (unit variance).

    Returns:
        `(B, C, h*f, w*f)` in the autoencoder's dtype, near [-1, 1] and not clamped.

    Raises:
        ValueError: if the latents' channels are not the autoencoder's.
    """
    if latents.ndim != 4 or latents.shape[1] != vae.config.latent_channels:
        raise ValueError(
            f"latents must have the shape (B, {vae.config.latent_channels}, h, w) "
            f"for this autoencoder, not {tuple(latents.shape)}"
        )
    return vae.decode(denormalize_latents(vae, latents.to(vae.dtype))).sample
