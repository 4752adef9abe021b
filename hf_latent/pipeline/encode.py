"""Step 1 of 4: images to latents."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny


def downsampling_factor(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Return f: how many pixels of height (or width) one latent value stands for."""
    encoder_blocks = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(encoder_blocks) - 1)


def normalize_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Bring an autoencoder's own latents to the scale that its denoiser was trained on.

    Honours the four configuration entries that diffusers' models carry and never apply
    themselves: `(latents - shift_factor - latents_mean) / latents_std * scaling_factor`
    (`scaling_factor`: LDM, Rombach et al. 2022, section D.1; `shift_factor`: Stable Diffusion 3;
    the per-channel pair: Playground 2.5). With a folded autoencoder all four are neutral.
    `denormalize_latents` in decode.py is the exact inverse.

    Args:
        vae: the autoencoder whose configuration says the scale.
        latents: `(B, c, h, w)`, as its encoder gives them.

    Returns:
        `(B, c, h, w)`, same dtype.
    """
    if vae.config.get("shift_factor"):
        latents = latents - vae.config.shift_factor
    if vae.config.get("latents_mean") is not None:
        latents = latents - latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    if vae.config.get("latents_std") is not None:
        latents = latents / latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
    return latents * vae.config.scaling_factor


def check_images(vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor) -> None:
    """Refuse images that the autoencoder cannot take.

    Args:
        vae: the autoencoder.
        images: `(B, C, H, W)` float.

    Raises:
        ValueError: if the dtype, the channels or the size do not fit the autoencoder.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a float tensor (B, C, H, W) in [-1, 1], "
            f"not {tuple(images.shape)} {images.dtype}"
        )
    channels, height, width = images.shape[1:]
    if channels != vae.config.in_channels:
        raise ValueError(
            f"the images have {channels} channels and the autoencoder takes "
            f"{vae.config.in_channels}: convert the images, or use another autoencoder"
        )
    f = downsampling_factor(vae)
    if height % f or width % f:
        raise ValueError(
            f"images of {height}x{width} do not fit the autoencoder: "
            f"height and width must be multiples of its downsampling factor {f}"
        )


def encode_images(
    vae: AutoencoderKL | AutoencoderTiny,
    images: torch.Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    sample_posterior: bool = True,
) -> torch.Tensor:
    """Encode images into unit-variance latents.

    Args:
        vae: a frozen autoencoder. An AutoencoderTiny has no posterior: its latents are used as
            they are.
        images: `(B, C, H, W)` float in [-1, 1]; H and W multiples of f.
        generator: draws the posterior sample; a list has one for each image.
        sample_posterior: draw from the posterior, as training does; otherwise take its mean.

    Returns:
        `(B, c, H/f, W/f)` in the autoencoder's dtype, zero mean and unit variance per channel over
        the training set.

    Raises:
        ValueError: if the channels or the size do not fit the autoencoder.
    """
    check_images(vae, images)
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latents"):
        latents = encoded.latents
    elif sample_posterior:
        latents = encoded.latent_dist.sample(generator)
    else:
        latents = encoded.latent_dist.mode()
    return normalize_latents(vae, latents)
