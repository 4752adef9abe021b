"""Images from any source, as tensors."""

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import ImageSplits, open_images

__all__ = ["ImageSplits", "ImagesConfig", "open_images"]
