"""The four steps and the pipeline that composes them: the files saved with every model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_latent.pipeline.pipeline import LatentDiffusionPipeline

__all__ = ["LatentDiffusionPipeline"]


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is first used: the steps alone do without it."""
    if name == "LatentDiffusionPipeline":
        from hf_latent.pipeline.pipeline import LatentDiffusionPipeline

        return LatentDiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
