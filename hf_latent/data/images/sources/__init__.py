"""Open any source of images, still encoded: which images, splits and labels it has."""

from hf_latent.data.images.sources.source import Choice, Source, open_source

__all__ = ["Choice", "Source", "open_source"]
