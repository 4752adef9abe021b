"""The settings of what is done with a finished model: measuring it on images, drawing from it."""

from dataclasses import dataclass, fields
from pathlib import Path

from huggingface_hub import constants
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from hf_latent.command import Settings
from hf_latent.data.images.config import ImagesConfig
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import FeatureExtractorName
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import Sampler

CACHE_DIR = Path(constants.HF_HOME) / "hf_latent" / "vectors"
LARGEST_DEFAULT = 10_000
FEWEST_IMAGES = 10


@dataclass(frozen=True, kw_only=True)
class ImagesOfModelConfig(ImagesConfig):
    """The images that a finished model is measured on.

    Attributes:
        resolution: Height and width in pixels, one number for a square or "H,W"; auto is the
            model's own.
        crop: Part of a recipe, and of no effect here: every image is cropped at its centre.
        horizontal_flip: Part of a recipe, and of no effect here: no image is mirrored.
        channels: 1 for grey, 3 for RGB, 4 for RGBA. By default what the model takes.
    """

    resolution: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super(ImagesConfig, self).__post_init__()  # ImagesConfig knows no resolution of auto
        self.images_config((1, 1), None)

    def images_config(self, size: tuple[int, int], channels: int | None) -> ImagesConfig:
        """Return which images are used, and how, without anything random.

        Args:
            size: the model's height and width, for a resolution of auto.
            channels: the model's, where none are given.
        """
        values = {field.name: getattr(self, field.name) for field in fields(ImagesConfig)}
        if self.resolution == "auto":
            values["resolution"] = f"{size[0]},{size[1]}"
        values["channels"] = self.channels or channels
        return ImagesConfig(**values | {"crop": "center", "horizontal_flip": False})


def parse_interval(guidance_interval: str | None) -> tuple[float, float] | None:
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
        return parse_interval(self.guidance_interval)

    def check_model(self, pipeline: LatentDiffusionPipeline) -> None:
        """Refuse guidance of a model without classes and without a guide, naming the flag."""
        if pipeline.num_classes is not None or pipeline.guide_unet is not None:
            return
        for name, off in (("guidance_scale", (None, 1)), ("guidance_interval", (None,))):
            if getattr(self, name) not in off:
                raise UserError(
                    f"--{name} needs a model with classes or a --guide: this one has neither"
                )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ImagesOfModelConfig, SamplingConfig):
    """Measure a model: what its autoencoder keeps, how close its images come, whether it copies.

    Attributes:
        model: the folder or Hub id of a model, or the name of a released one.
        output_dir: the folder for metrics.json, pictures and the generated images. A run that was
            killed goes on from what is there.
        overwrite_output_dir: accept a folder with other files in it.
        num_images: generated images, and real ones to compare them with. There must be twice as
            many training images, so that real ones can be compared with real ones; unset, as many
            as there can be, at most 10,000.
        feature_extractor: the network that compares images: efficientnet-lite0 (of the extra
            features), dinov2 (from the Hub) or inception (of the extra inception, for comparison
            with papers).
        batch_size: images at a time.
        dataloader_num_workers: processes that decode images.
        cache_dir: where vectors of real images are kept, to be computed once.
        update_card: put metrics.json and the pictures into the folder of a local model too, and
            write its card anew; a card that was edited by hand is kept. Not with --guide, which is
            no part of the model.
    """

    model: str
    output_dir: str
    overwrite_output_dir: bool = False
    num_images: PositiveInt | None = None
    feature_extractor: FeatureExtractorName = "efficientnet-lite0"
    batch_size: PositiveInt = 100
    dataloader_num_workers: NonNegativeInt = 0
    cache_dir: str = str(CACHE_DIR)
    update_card: bool = True

    def count(self, train_images: int) -> int:
        """Return how many images to generate and to compare with.

        Args:
            train_images: how many there are.

        Raises:
            UserError: if there are too few.
        """
        most = train_images // 2
        if most < FEWEST_IMAGES:
            raise UserError(
                f"{train_images} training images are too few to measure anything: at least "
                f"{2 * FEWEST_IMAGES} are needed"
            )
        count = min(most, LARGEST_DEFAULT) if self.num_images is None else self.num_images
        if count > most or count < FEWEST_IMAGES:
            raise UserError(
                f"--num_images {count} does not fit {train_images} training images: it must be "
                f"from {FEWEST_IMAGES} to half of them, {most}"
            )
        return count
