"""From a folder of images to your own latent diffusion model, in plain diffusers parts.

The four steps are four files of `hf_latent/pipeline/`: encode, add_noise, denoise, decode.
`LatentDiffusionPipeline` composes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_latent.pipeline.pipeline import LatentDiffusionPipeline
    from hf_latent.training.autoencoder import train_autoencoder
    from hf_latent.training.autoencoder_config import AutoencoderConfig
    from hf_latent.training.denoiser import train_denoiser
    from hf_latent.training.denoiser_config import DenoiserConfig

__version__ = "0.1.0"

__all__ = [
    "AutoencoderConfig",
    "DenoiserConfig",
    "LatentDiffusionPipeline",
    "__version__",
    "train_autoencoder",
    "train_denoiser",
]

# Each public name and the module to import it from when it is first used.
_MODULES = {
    "AutoencoderConfig": "hf_latent.training.autoencoder_config",
    "DenoiserConfig": "hf_latent.training.denoiser_config",
    "LatentDiffusionPipeline": "hf_latent.pipeline.pipeline",
    "train_autoencoder": "hf_latent.training.autoencoder",
    "train_denoiser": "hf_latent.training.denoiser",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and with it torch and diffusers, when it is first used."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet."""
    return __all__
