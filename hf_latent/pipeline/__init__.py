"""The four steps, and the pipeline that composes them: what travels with every saved model."""

from typing import Any

__all__ = ["LatentDiffusionPipeline"]


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is asked for."""
    if name == "LatentDiffusionPipeline":
        from .pipeline import LatentDiffusionPipeline

        return LatentDiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
