"""The settings of drawing images from a model."""

from dataclasses import dataclass

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from hf_latent.command import Settings
from hf_latent.errors import UserError
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import Sampler


def read_interval(guidance_interval: str | None) -> tuple[float, float] | None:
    """Read two noise levels of the command line; UserError where they are not such."""
    if guidance_interval is None:
        return None
    try:
        low, high = (float(level) for level in guidance_interval.split(","))
    except ValueError:
        low = high = -1.0
    if not 0 <= low < high <= 1:
        raise UserError(
            f"--guidance_interval {guidance_interval} must be two noise levels from 0 to 1, the "
            "lower one first, with a comma between"
        )
    return low, high


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """How images are drawn.

    Attributes:
        sampler: the stock scheduler to sample with, of those that fit the model's objective (ddim
            never fits flow); unset, the one that the model was saved with.
        num_inference_steps: the sampler's steps.
        guidance_scale: classifier-free guidance, or autoguidance with a guide; 1 is off; unset,
            with classes or a guide the model's own, or 2, else off.
        guidance_interval: guide between two noise levels only, such as 0.2,0.8; 0 is no noise, 1
            nothing else, and 0,1 is all; unset, the model's own, or all.
        guide: a weaker denoiser of the same latents, classes, objective and noise levels, such as
            one trained for less long: a folder or Hub id, of a UNet2DModel or a pipeline, or the
            name of a released one; guidance is then autoguidance.
    """

    sampler: Sampler | None = None
    num_inference_steps: PositiveInt = 20
    guidance_scale: NonNegativeFloat | None = None
    guidance_interval: str | None = None
    guide: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        _ = self.interval

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two noise levels; UserError where they are not such."""
        return read_interval(self.guidance_interval)

    def check_model(self, pipeline: LatentDiffusionPipeline) -> None:
        """Refuse guidance of a model without classes and without a guide, naming the flag."""
        if pipeline.num_classes is not None or pipeline.guide_unet is not None:
            return
        for name, off in (("guidance_scale", (None, 1)), ("guidance_interval", (None,))):
            if getattr(self, name) not in off:
                raise UserError(
                    f"--{name} needs a model with classes or a --guide: this one has neither"
                )
