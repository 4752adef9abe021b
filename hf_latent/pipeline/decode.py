"""Step 4 of 4: latents to images, and images to the data's own values."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor

from .autoencoders import (
    Autoencoder,
    denormalize_latents,
    find_kind,
    image_channels,
    latent_channels,
)

# The configuration entry of an autoencoder that was trained with a value range: `range`, a pair of
# lowest and highest value for all channels or for each; `dtype` of the files; `shown`, see
# `shown_channels`. It is private, so diffusers ignores and keeps it.
IMAGE_VALUES = "_image_values"


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


def shown_channels(vae: Autoencoder) -> Sequence[int] | None:
    """Return the channels that a picture shows: one as grey, or three as red, green and blue.

    None means that the images are pictures: grey, RGB or RGBA by their number of channels.
    """
    channels = image_channels(vae)
    default = None if channels in (1, 3, 4) else first_channels(channels)
    return (vae.config.get(IMAGE_VALUES) or {}).get("shown", default)


def first_channels(channels: int) -> Sequence[int]:
    """Return the first three channels; of two the first and twice the second; or the only one."""
    return [0] if channels == 1 else [0, 1, min(2, channels - 1)]


def _range(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Return lowest value and width of each channel's range, `(2, C or 1, 1, 1)` float32.

    float32 may not tell a narrow range's ends apart, so its width is computed before.
    """
    pairs = (vae.config.get(IMAGE_VALUES) or {"range": [[0.0, 1.0]]})["range"]
    lows_and_widths = [(low, high - low) for low, high in pairs]
    return torch.tensor(lows_and_widths, device=images.device).T[:, :, None, None]


def to_values(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Convert images `(B, C, H, W)` in [-1, 1] to the data's own values, float32.

    `low + (images + 1) / 2 * (high - low)`, clipped to [low, high], with the value range of the
    autoencoder's training; without one [0, 1].
    """
    low, width = _range(vae, images)
    return low + (images.float() / 2 + 0.5).clamp(0, 1) * width


def from_values(vae: Autoencoder, values: torch.Tensor) -> torch.Tensor:
    """Convert values `(B, C, H, W)` to images in [-1, 1], the inverse of `to_values`."""
    low, width = _range(vae, values)
    return ((values.float() - low) / width).clamp(0, 1) * 2 - 1


def write_images(
    image_processor: VaeImageProcessor,
    images: torch.Tensor,
    output_type: str,
    vae: Autoencoder | None,
) -> Any:
    """Convert images near [-1, 1] to an output type of the pipeline.

    Args:
        image_processor: the pipeline's.
        images: `(B, C, H, W)`.
        output_type: "np" gives `to_values`, "pil" the shown channels.
        vae: the autoencoder; None for latents, which stay as they are.
    """
    if vae is not None and output_type == "np":
        return image_processor.pt_to_numpy(to_values(vae, images))
    if vae is not None and output_type == "pil" and (shown := shown_channels(vae)) is not None:
        images = images[:, list(shown)]
    return image_processor.postprocess(images, output_type)
