"""How a sweep divides its time: measuring is timed and reserved, the rest is for training."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DModel

from hf_latent.data.images.open import ImageSplits
from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.experiments.quickstart import GRID_IMAGE_STEPS
from hf_latent.experiments.sweep.config import Pair, SweepConfig
from hf_latent.experiments.time_budget import SAFETY, TimeBudget
from hf_latent.models.presets import create_autoencoder, create_denoiser, create_scheduler
from hf_latent.output import read_json
from hf_latent.pipeline import LatentDiffusionPipeline

logger = logging.getLogger(__name__)

AUTOENCODER_SHARE = 0.4  # of the training time; a denoiser needs more
MINIMUM_MINUTES = 0.05  # of an autoencoder's training
HELD_OUT_IMAGES = 2000  # at most, to reconstruct
FOLD_SAMPLES = 2000  # training images to measure the latent scale on
VALIDATION_IMAGES = 200  # held-out images to validate on after each training
BATCH_SIZE = 100
ADVICE = "fewer --factors, --latent_channels, --num_images or --max_train_samples save time"
ELSEWHERE = "choose another --output_dir, or remove this one"
TIMED_IMAGES = 50
SECONDS_AROUND_A_PAIR = 5.0  # to start trainings and to save, hash and load models, on a small CPU


@dataclass(frozen=True)
class Plan:
    """The content of plan.json.

    Attributes:
        settings: see `SweepConfig.settings`.
        train_identity: hash of the training images and their preprocessing.
        validation_fingerprint: of the held-out images.
        preprocessing: of the feature extractor.
        autoencoder_minutes: of each autoencoder's training.
        denoiser_minutes: of each denoiser's training.
        measuring_minutes: reserved for a pair's other work, on average.
    """

    settings: dict[str, Any]
    train_identity: str
    validation_fingerprint: str
    preprocessing: str
    autoencoder_minutes: float
    denoiser_minutes: float
    measuring_minutes: float

    @property
    def pair_minutes(self) -> float:
        """Minutes of a whole pair."""
        return self.autoencoder_minutes + self.denoiser_minutes + self.measuring_minutes


def create_models(
    config: SweepConfig, pair: Pair, image_shape: tuple[int, int, int], num_classes: int | None
) -> tuple[AutoencoderKL, UNet2DModel]:
    """Create a pair's untrained models.

    Raises:
        UserError: if the factor does not fit the images or the denoiser, or the widths the preset.
    """
    channels, height, width = image_shape
    size = height if height == width else (height, width)
    try:
        vae = create_autoencoder(
            config.preset,
            channels,
            size,
            latent_channels=pair.channels,
            block_out_channels=config.widths(pair.factor),
        )
        unet = create_denoiser(config.denoiser_preset, vae, image_shape, num_classes)
    except ValueError as error:  # a UserError is one too
        raise UserError(f"{pair.name} is not possible: {error}") from error
    return vae, unet


def reserve_measuring(
    config: SweepConfig, splits: ImageSplits, extractor: FeatureExtractor, budget: TimeBudget
) -> None:
    """Reserve time for all work except training, timed on untrained models.

    The time depends on the factor and hardly on the channels, so only the model with the most
    channels is timed for each factor.
    """
    pairs = config.pairs()
    held_out = min(len(splits.validation), HELD_OUT_IMAGES)
    images = splits.validation.evenly_spaced(TIMED_IMAGES).read()
    encoded = len(splits.train) * (2 if config.horizontal_flip else 1)
    encoded += held_out + 3 * VALIDATION_IMAGES
    decoded = held_out + config.num_images + VALIDATION_IMAGES
    generated = config.num_seeds * config.num_images
    steps = generated * config.num_inference_steps + GRID_IMAGE_STEPS
    for factor in sorted({pair.factor for pair in pairs}):
        same = [pair for pair in pairs if pair.factor == factor]
        vae, unet = create_models(config, same[-1], splits.image_shape, splits.num_classes)
        pipeline = LatentDiffusionPipeline(vae.eval(), unet.eval(), create_scheduler("flow"))
        count = len(same)
        budget.reserve_model(pipeline, images, count * encoded, count * decoded, count * steps)
    pixels = to_uint8(images)
    real = held_out + 2 * config.num_images
    made = held_out + config.num_images + generated  # reconstructions, floor and samples
    extracted = (real + len(pairs) * made) / len(pixels)
    budget.reserve("measuring", lambda: extractor(pixels), extracted)
    vectors = [extractor(pixels)]
    distances = 1 + len(pairs) * (2 + config.num_seeds)
    budget.reserve("measuring", lambda: frechet_distance(vectors, vectors), distances, runs=1)


def reserve_known(config: SweepConfig, budget: TimeBudget) -> None:
    """Reserve the time around trainings, which needs no timing, and refuse too few minutes at once.

    Raises:
        UserError: if the minutes are too few for this number of pairs on any machine.
    """
    count = len(config.pairs())
    budget.reserved["around"] = SAFETY * count * SECONDS_AROUND_A_PAIR
    budget.check(count * MINIMUM_MINUTES / AUTOENCODER_SHARE, ADVICE)


def divide_minutes(minutes: float, pairs: int) -> tuple[float, float]:
    """Divide training time among pairs; return the minutes of an autoencoder and of a denoiser."""
    each = minutes / pairs
    return AUTOENCODER_SHARE * each, (1 - AUTOENCODER_SHARE) * each


def make_plan(
    config: SweepConfig, splits: ImageSplits, extractor: FeatureExtractor, budget: TimeBudget
) -> Plan:
    """Reserve the time to measure, and divide the rest.

    Raises:
        UserError: if the time is too short to train, or a pair cannot be created.
    """
    count = len(config.pairs())
    logger.info("timing this machine")
    reserve_measuring(config, splits, extractor, budget)
    needed = budget.check(count * MINIMUM_MINUTES / AUTOENCODER_SHARE, ADVICE)
    logger.info(f"this machine needs at least {needed:.2f} minutes of {config.max_minutes:g} given")
    autoencoder, denoiser = divide_minutes(budget.minutes_left, count)
    return Plan(
        config.settings(),
        splits.train.identity,
        splits.validation_fingerprint,
        extractor.preprocessing,
        autoencoder,
        denoiser,
        budget.reserved_seconds / 60 / count,
    )


def read_plan(path: Path, settings: dict[str, Any]) -> Plan:
    """Read the plan of a sweep to resume.

    Args:
        path: of plan.json.
        settings: those given now, see `SweepConfig.settings`.

    Raises:
        UserError: if the file cannot be read, or the sweep has other settings.
    """
    try:
        plan = Plan(**read_json(path))
        before = plan.settings
        names = sorted(x for x in {*before, *settings} if before.get(x) != settings.get(x))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {ELSEWHERE}") from error
    if names:
        changes = ", ".join(f"--{x} {before.get(x)} (now {settings.get(x)})" for x in names)
        raise UserError(
            f"{path.parent} has a sweep of other settings: {changes}; give the earlier ones to "
            f"resume it, or {ELSEWHERE}"
        )
    return plan


def check_same_images(
    plan: Plan, splits: ImageSplits, extractor: FeatureExtractor, output_dir: Path
) -> None:
    """Check that a resumed sweep has the same images and compares them by the same features.

    Raises:
        UserError: if not.
    """
    now = (splits.train.identity, splits.validation_fingerprint)
    if (plan.train_identity, plan.validation_fingerprint) != now:
        raise UserError(
            f"the images of {plan.settings['data']} are not those of the sweep in {output_dir}: "
            f"{ELSEWHERE}"
        )
    if plan.preprocessing != extractor.preprocessing:
        raise UserError(
            f"the sweep in {output_dir} compares images by other features "
            f"({plan.preprocessing}; now {extractor.preprocessing}): {ELSEWHERE}"
        )
