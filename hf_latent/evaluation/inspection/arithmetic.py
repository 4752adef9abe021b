"""The arithmetic of a compression: values, bytes and bits."""

from typing import Any

from hf_latent.evaluation.inspection.latent_figures import PosteriorRate
from hf_latent.models.presets import Compression


def describe_compression(compression: Compression) -> dict[str, Any]:
    """Return the arithmetic of a compression, flat."""
    images, latents = compression.image_values, compression.latent_values
    return {
        "image_shape": compression.image_shape,
        "latent_shape": compression.latent_shape,
        "image_values": images,
        "latent_values": latents,
        "compression_ratio": compression.ratio,
        "images_uint8_mb_per_100000": images / 10,
        "latents_float32_mb_per_100000": 4 * latents / 10,
        "latents_float16_mb_per_100000": 2 * latents / 10,
    }


def describe_rate(rate: PosteriorRate | None, compression: Compression) -> dict[str, Any]:
    """Return the bits of the posterior, and the bytes that the yardsticks get for an image.

    Without a posterior there is no rate: a latent is then taken at one byte a value.
    """
    if rate is None:
        return {"budget_bytes": float(compression.latent_values), "budget": "one byte a value"}
    bits = rate.bits_per_image()
    pixels = compression.image_shape[1] * compression.image_shape[2]
    return {
        "kl_bits_per_pixel": bits["kl_bits"] / pixels,
        "rate_bits_per_pixel": bits["rate_bits"] / pixels,
        "budget_bytes": bits["rate_bits"] / 8,
        "budget": "the posterior's rate",
    }
