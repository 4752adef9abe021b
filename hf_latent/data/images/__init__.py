"""Images from any source, as tensors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_latent.data.images.config import ImagesConfig
    from hf_latent.data.images.open import ImageSplits, open_images

__all__ = ["ImageSplits", "ImagesConfig", "open_images"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the settings alone do without datasets."""
    if name in __all__:
        module = "config" if name == "ImagesConfig" else "open"
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
