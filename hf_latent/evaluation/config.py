"""The settings for measuring a finished model on images and for generating images with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from hf_latent.command import Settings
from hf_latent.data.images.config import ImagesConfig, select_image_settings
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import choose_sampling
from hf_latent.evaluation.precision import Dtype
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance
from hf_latent.pipeline.samplers import Sampler

FeatureExtractorName = Literal["efficientnet-lite0", "dinov2", "inception"]
CACHE_DIR = Path(constants.HF_HOME) / "hf_latent" / "vectors"
LARGEST_DEFAULT = 10_000
FEWEST_IMAGES = 10


@dataclass(frozen=True, kw_only=True)
class ImagesOfModelConfig(ImagesConfig):
    """The images to measure a finished model on.

    Attributes:
        resolution: Height and width in pixels, one number for a square or "H,W"; auto is the
            model's own.
        crop: Accepted because recipes have it, but ignored: images are cropped at the centre.
        horizontal_flip: Accepted because recipes have it, but ignored: no image is mirrored.
        channels: 1 for grey, 3 for RGB, 4 for RGBA. By default those of the images, which must then
            be the model's; for a model of measured images, the model's own.
        value_range: By default that of the model, if it was trained with one.
    """

    resolution: int | str = "auto"

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super(ImagesConfig, self).__post_init__()  # ImagesConfig rejects the resolution auto
        self.images_config((1, 1))

    def images_config(self, size: tuple[int, int] | None) -> ImagesConfig:
        """Return the settings of the images, without random crops or flips.

        The model's `size` (height and width) is used if the settings name none.

        Raises:
            UserError: if the model has none either.
        """
        values = select_image_settings(self)
        if self.resolution == "auto":
            if size is None:
                raise UserError("--resolution is needed: the autoencoder's configuration has none")
            values["resolution"] = f"{size[0]},{size[1]}"
        return ImagesConfig(**values | {"crop": "center", "horizontal_flip": False})


def parse_interval(guidance_interval: str | None) -> tuple[float, float] | None:
    """Parse the two noise levels of a flag, such as "0.2,0.8"; UserError if they are invalid."""
    if guidance_interval is None:
        return None
    try:
        low, high = (float(level) for level in guidance_interval.split(","))
        return Guidance(interval=(low, high)).interval
    except ValueError as error:
        raise UserError(
            f"--guidance_interval {guidance_interval} must be two noise levels from 0 to 1, the "
            "lower one first, with a comma between"
        ) from error


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """How images are generated.

    Attributes:
        sampler: The stock scheduler to sample with. It must fit the model's objective (ddim never
            fits flow). By default the one that the model was saved with.
        num_inference_steps: The sampler's steps. By default the model's own, or 20.
        guidance_scale: The scale of classifier-free guidance, or of autoguidance with a guide; 1
            is off. By default the model's own, or 2; off without classes, prompts and a guide.
        guidance_interval: Guide only between two noise levels, such as 0.2,0.8; 0 is no noise, 1
            is pure noise. By default the model's own, or 0,1.
        guide: A weaker denoiser for autoguidance, such as one trained for fewer steps: a denoiser
            or a pipeline, named like the model. Its latents, classes, text encoder, objective and
            noise levels must be the model's.
        dtype: Dtype to generate in. auto is bfloat16 if that is faster: on a GPU that has it, and
            on a CPU where a measurement of a second shows it.
        compile: Compile the denoiser, and a guide, with torch.compile.
    """

    sampler: Sampler | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: NonNegativeFloat | None = None
    guidance_interval: str | None = None
    guide: str | None = None
    dtype: Dtype = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super().__post_init__()
        parse_interval(self.guidance_interval)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two noise levels of `guidance_interval`."""
        return parse_interval(self.guidance_interval)

    def choose_sampling(
        self, pipeline: LatentDiffusionPipeline, conditional: bool | None = None
    ) -> tuple[int, Guidance]:
        """Return the number of steps and the guidance, see `sampling.choose_sampling`."""
        asked = self.num_inference_steps, self.guidance_scale, self.interval
        return choose_sampling(pipeline, *asked, conditional)


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(ImagesOfModelConfig):
    """How generated images are compared with real ones.

    Attributes:
        model: The folder of a model or of the run that trained one, the name of a released one, or
            an id on the Hub.
        caption_column: As for the training. By default auto for a model with a text encoder, else
            there are no captions.
        num_images: The number of generated images, and of real ones to compare them with. The data
            needs twice as many training images, because real ones are also compared with real
            ones. By default as many as possible, at most 10,000.
        feature_extractor: The network that compares images: efficientnet-lite0 (needs the extra
            features), dinov2 (from the Hub) or inception (needs the extra inception; for
            comparison with papers).
        batch_size: Images per batch.
    """

    model: str
    num_images: PositiveInt | None = None
    feature_extractor: FeatureExtractorName = "efficientnet-lite0"
    batch_size: PositiveInt = 100

    def choose_num_images(self, train_images: int) -> int:
        """Return how many images to generate and compare; UserError if there are too few."""
        most = train_images // 2
        if most < FEWEST_IMAGES:
            raise UserError(
                f"{train_images} training images are too few to measure a model: use at least "
                f"{2 * FEWEST_IMAGES}"
            )
        count = min(most, LARGEST_DEFAULT) if self.num_images is None else self.num_images
        if count > most or count < FEWEST_IMAGES:
            raise UserError(
                f"--num_images {count} does not fit {train_images} training images: it must be "
                f"from {FEWEST_IMAGES} to half of them, {most}"
            )
        return count


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ComparisonConfig, SamplingConfig):
    """Measure a model: what its autoencoder keeps, how close its images come, whether it copies.

    Attributes:
        output_dir: The folder for metrics.json, pictures and the generated images. A killed run
            resumes from the images there.
        overwrite_output_dir: Accept a folder with other files in it.
        dataloader_num_workers: Processes that decode images.
        cache_dir: The folder that keeps vectors of real images, so that they are computed once.
        clip_model: A CLIP model that scores how well the images of a model with a text encoder fit
            their captions: a folder, or an id on the Hub. By default none.
        update_card: Also put metrics.json and the pictures into a local model's folder, and write
            its card again. A card that was edited by hand is kept. Ignored with --guide, which is
            not part of the model.
    """

    output_dir: str
    overwrite_output_dir: bool = False
    dataloader_num_workers: NonNegativeInt = 0
    cache_dir: str = str(CACHE_DIR)
    clip_model: str | None = None
    update_card: bool = True
