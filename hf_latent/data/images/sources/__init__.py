"""Open any source of images, still encoded: which images, splits and labels it has."""

from hf_latent.data.images.sources.source import BUILT_IN, Choice, Source, open_source

__all__ = ["BUILT_IN", "Choice", "Source", "open_source"]
