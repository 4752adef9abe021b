"""From a folder of images to your own latent diffusion model, in plain diffusers parts.

The four steps are four files: encode, add_noise, denoise, decode. The pipeline composes them.
"""

from typing import Any

__all__ = ["LatentDiffusionPipeline"]


def __getattr__(name: str) -> Any:
    """Import the pipeline, and with it torch and diffusers, when it is asked for."""
    if name == "LatentDiffusionPipeline":
        from hf_latent.pipeline import LatentDiffusionPipeline

        return LatentDiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
