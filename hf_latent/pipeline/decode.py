"""Step 4 of 4: latents to images."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny


def denormalize_latents(
    vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor
) -> torch.Tensor:
    """Bring latents back to the scale that the autoencoder's decoder takes.

    The exact inverse of `normalize_latents` in encode.py:
    `latents / scaling_factor * latents_std + latents_mean + shift_factor`.

    Args:
        vae: the autoencoder whose configuration says the scale.
        latents: `(B, c, h, w)`, as the denoiser gives them.

    Returns:
        `(B, c, h, w)`, same dtype.
    """
    latents = latents / vae.config.scaling_factor
    if vae.config.get("latents_std") is not None:
        latents = latents * latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
    if vae.config.get("latents_mean") is not None:
        latents = latents + latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    if vae.config.get("shift_factor"):
        latents = latents + vae.config.shift_factor
    return latents


def check_output_type(
    vae: AutoencoderKL | AutoencoderTiny,
    output_type: str,
    known: Sequence[str] = ("pil", "np", "pt", "latent"),
) -> None:
    """Refuse a form of images that there is not, or not for these images.

    Args:
        vae: the autoencoder.
        output_type: as asked for.
        known: which there are.

    Raises:
        ValueError: if it is none of them, or pil for channels that no picture has.
    """
    if output_type not in known:
        names = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ValueError(f"output_type must be {names}, not {output_type!r}")
    channels = vae.config.out_channels
    if output_type == "pil" and channels not in (1, 3, 4):
        raise ValueError(
            f"images of {channels} channels are no pictures: set output_type to np or pt"
        )


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents into images.

    Args:
        vae: the autoencoder that the latents come from.
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
