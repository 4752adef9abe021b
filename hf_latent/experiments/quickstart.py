"""`hf-latent quickstart`: train, sample, measure and save a model of built-in images."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from hf_latent.command import Seed, Settings
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.images.pixels import Box
from hf_latent.evaluation.images.sampling import (
    choose_sampling,
    count_evaluations,
    load_pipeline,
    sample_images,
)
from hf_latent.evaluation.machine import machine_figures
from hf_latent.evaluation.measures.classifier import (
    LabelledImages,
    measure_accuracy,
    train_classifier,
)
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions
from hf_latent.evaluation.pictures import image_grid, interleave, labelled_rows, save_picture
from hf_latent.experiments.evaluate_model import update_card
from hf_latent.experiments.quickstart_report import (
    card_metrics,
    describe_quickstart,
    summary_figures,
)
from hf_latent.experiments.time_budget import TimeBudget
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.lock import locks_output
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.models.presets import (
    FLOW_INFERENCE_STEPS,
    create_autoencoder,
    create_denoiser,
    create_scheduler,
    measure_compression,
)
from hf_latent.output import check_output_dir, replaced_whole, write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents

logger = logging.getLogger(__name__)

IMAGES: dict[str, Any] = {"data": "fashion_mnist", "resolution": 32, "resize_mode": "pad"}
AUTOENCODER: dict[str, Any] = {
    "train_batch_size": 16,
    "learning_rate": 6e-3,
    "ema_decay": 0.995,
    "reconstruction_loss": "l1",
    "kl_weight": 5e-3,
    "validation_steps": 1000,
}
DENOISER = {
    "train_batch_size": 32,
    "learning_rate": 2e-3,
    "ema_decay": 0.997,
    "validation_steps": 1000,
}
RELEASED_AUTOENCODER = "fashion-mnist-f4"
AUTOENCODER_SHARE = 0.25
MINIMUM_MINUTES = 0.05
SAMPLES_PER_CLASS, PAIRS = 8, 40
BATCH_SIZE = 100
VALIDATION_IMAGES = 512
FINISH_SECONDS = 3.0  # to save the model, its card and the report
# Images times steps of the grid at the end of a denoiser's training.
GRID_IMAGE_STEPS = 80 * FLOW_INFERENCE_STEPS


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(Settings):
    """Train, sample, measure and save a latent diffusion model of built-in images.

    Attributes:
        output_dir: The folder for the model, its pictures and report.json.
        overwrite_output_dir: Replace the files of an earlier quickstart; others stay.
        train_vae: Train an autoencoder too, in place of the released fashion-mnist-f4.
        max_minutes: Minutes for the whole command, evaluation included.
        guidance_scale: The scale of classifier-free guidance; 1 is off.
        num_inference_steps: The sampler's steps.
        evaluation_images: Number of generated images to measure label agreement on.
        max_train_samples: Number of training images, drawn by the seed. By default all.
        seed: Seed of everything random.
    """

    output_dir: str = "hf-latent-quickstart"
    overwrite_output_dir: bool = False
    train_vae: bool = False
    max_minutes: PositiveFloat = 6.0
    guidance_scale: NonNegativeFloat = 2.0
    num_inference_steps: PositiveInt = FLOW_INFERENCE_STEPS
    evaluation_images: PositiveInt = 1000
    max_train_samples: PositiveInt | None = None
    seed: Seed = 0

    def images_config(self) -> ImagesConfig:
        """Return the settings of the images."""
        return ImagesConfig(**IMAGES, seed=self.seed, max_train_samples=self.max_train_samples)


def read_images_and_labels(dataset: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a small data set into memory.

    Returns:
        Images `(N, C, H, W)` float32 in [-1, 1], and labels `(N,)` int64.
    """
    assert dataset.labels is not None
    return dataset.view(mirrored=False).read(), dataset.labels


def reserve_evaluation(
    config: QuickstartConfig, splits: ImageSplits, test_images: torch.Tensor, budget: TimeBudget
) -> None:
    """Reserve time for all work except the trainings, timed on untrained models."""
    if config.train_vae:
        vae: Autoencoder = create_autoencoder("tiny", splits.image_shape[0], splits.image_shape[1])
    else:
        vae = load_autoencoder(RELEASED_AUTOENCODER)
    unet = create_denoiser("tiny", vae, splits.image_shape, splits.num_classes)
    pipeline = LatentDiffusionPipeline(vae.eval(), unet.eval(), create_scheduler("flow"))
    images = test_images[:200]
    encoded = len(splits.train) + min(len(splits.validation), VALIDATION_IMAGES)
    image_steps = config.evaluation_images * config.num_inference_steps
    budget.reserve_model(
        pipeline,
        images,
        encoded,
        len(test_images),
        image_steps,
        config.guidance_scale,
        ("encode", "reconstruction", "sampling"),
    )
    budget.reserved["finish"] = FINISH_SECONDS
    budget.reserved["grid"] = budget.reserved["sampling"] * GRID_IMAGE_STEPS / image_steps


def train(config: QuickstartConfig, splits: ImageSplits, budget: TimeBudget) -> dict[str, Any]:
    """Train the autoencoder, if asked, and the denoiser in the time left; return figures."""
    output_dir = Path(config.output_dir)
    shared: dict[str, Any] = {
        **asdict(config.images_config()),
        "overwrite_output_dir": config.overwrite_output_dir,
        "checkpointing_steps": None,
    }
    vae, figures = RELEASED_AUTOENCODER, dict[str, Any]()
    if config.train_vae:
        with budget.stage("autoencoder"):
            autoencoder = train_autoencoder(
                AutoencoderConfig(
                    **shared | AUTOENCODER,
                    output_dir=str(output_dir / "autoencoder"),
                    max_train_minutes=budget.minutes_left * AUTOENCODER_SHARE,
                ),
                splits,
                now=budget.now,
            )
        vae, figures = str(autoencoder.model_dir), summary_figures("autoencoder", autoencoder)
        kl = autoencoder.held_out.kl_nats_per_latent_value
        figures["autoencoder_kl_nats_per_latent_value"] = kl
    # Encoding is a stage of its own: the training gets what it leaves.
    with budget.stage("encode"):
        images = {**asdict(config.images_config()), "max_validation_samples": VALIDATION_IMAGES}
        latents = EncodeConfig(**images, vae=vae, output_dir=str(output_dir / "denoiser/latents"))
        _, encoded = encode_latents(latents, splits, replace_other=True)
    with budget.stage("denoiser"):
        denoiser = train_denoiser(
            DenoiserConfig(
                **shared | DENOISER | {"overwrite_output_dir": True},
                output_dir=str(output_dir / "denoiser"),
                vae=vae,
                max_validation_samples=VALIDATION_IMAGES,
                max_train_minutes=max(budget.minutes_left, MINIMUM_MINUTES),
            ),
            splits,
            now=budget.now,
        )
    del budget.reserved["grid"]  # drawn at the end of the training
    with replaced_whole(output_dir / "model", written=MODEL_FILES) as temporary:
        denoiser.model_dir.rename(temporary)
    return {
        "autoencoder": "trained here" if config.train_vae else RELEASED_AUTOENCODER,
        **figures,
        **summary_figures("denoiser", denoiser),
        "encode_images_per_second": encoded / budget.stage_seconds["encode_seconds"],
        "vae_hash_before": denoiser.vae_hash_before,
        "vae_hash_after": denoiser.vae_hash_after,
    }


def measure_test_images(
    pipeline: LatentDiffusionPipeline,
    test_images: torch.Tensor,
    box: Box,
    output_dir: Path,
    budget: TimeBudget,
) -> dict[str, Any]:
    """Measure reconstructions of test images, and save reconstructions.png.

    Args:
        test_images: `(N, C, H, W)` float in [-1, 1].
        box: the part of an image inside its padding.
        output_dir: for the picture: each image beside its reconstruction.
        budget: if its time ends, the rest of the images is left out.

    Returns:
        Figures for the report.
    """
    batches = budget.fitting(test_images.split(200))
    reconstructions = torch.cat([torch.as_tensor(pipeline.reconstruct(x)).cpu() for x in batches])
    originals = test_images[: len(reconstructions)] / 2 + 0.5
    kept = asdict(measure_reconstructions([(originals, reconstructions)], box))
    channels, height, width = test_images.shape[1:]
    compression = measure_compression(pipeline.vae, (channels, height, width))
    pairs = interleave(originals[:PAIRS], reconstructions[:PAIRS])
    picture = image_grid(pairs, 2 * SAMPLES_PER_CLASS, group=2)
    save_picture(output_dir / "reconstructions.png", picture)
    return {
        **vars(compression),
        "compression_ratio": compression.ratio,
        **{f"test_{key}": value for key, value in kept.items() if value is not None},
    }


def measure_samples(
    config: QuickstartConfig,
    pipeline: LatentDiffusionPipeline,
    classifier: nn.Module,
    budget: TimeBudget,
) -> dict[str, Any]:
    """Measure the label agreement of samples, and save samples.png with a row for each class.

    Args:
        config: the number of samples, the sampling and the folder of the picture.
        classifier: trained on real images.
        budget: if its time ends, the rest of the samples is left out.

    Returns:
        Figures for the report.
    """
    labels, scale = list(pipeline.id2label), config.guidance_scale
    steps = config.num_inference_steps
    shown = SAMPLES_PER_CLASS * len(labels)
    count = max(config.evaluation_images, shown)
    start, batches = budget.now(), []
    asked = torch.arange(count)
    for rows in budget.fitting(asked.split(BATCH_SIZE)):
        batch_labels = [labels[row % len(labels)] for row in rows.tolist()]
        seed = config.seed + int(rows[0])
        batches.append(
            sample_images(pipeline, batch_labels, len(rows), seed, BATCH_SIZE, scale, steps)
        )
    samples, seconds = torch.cat(batches), budget.now() - start
    picture = labelled_rows(samples[:shown], labels, pipeline.id2label)
    save_picture(Path(config.output_dir, "samples.png"), picture)
    scored = samples[: config.evaluation_images] * 2 - 1
    asked_for = torch.arange(len(scored)) % len(labels)
    _, guidance = choose_sampling(pipeline, steps, scale)
    return {
        "label_agreement": measure_accuracy(
            classifier, LabelledImages.from_tensors(scored, asked_for)
        ),
        "label_agreement_images": len(scored),
        "denoiser_evaluations_per_image": count_evaluations(pipeline, steps, guidance),
        "sampling_images_per_second": len(samples) / seconds,
    }


@locks_output
def run_quickstart(
    config: QuickstartConfig,
    started: float | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Train and measure a model; save model/, samples.png, reconstructions.png and report.json.

    Args:
        config: the settings.
        started: see `TimeBudget`.
        now: the clock, in seconds.

    Returns:
        The report.

    Raises:
        UserError: if the folder cannot be written or the time is too short.
    """
    budget = TimeBudget(config.max_minutes, started, now)
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    models = f"a denoiser in the latent space of {RELEASED_AUTOENCODER}"
    if config.train_vae:
        models = "an autoencoder, then a denoiser in its latent space"
    logger.info(
        f"Fashion-MNIST in {config.max_minutes:g} minutes: train {models};\n"
        f"sample ten classes, measure, and save the model to {output_dir}/model."
    )
    with budget.stage("setup"):
        splits = open_images(config.images_config())
        test_images, test_labels = read_images_and_labels(splits.validation)
    with budget.stage("classifier"):
        training_set = LabelledImages.from_tensors(*read_images_and_labels(splits.train))
        classifier = train_classifier(training_set, splits.num_classes or 1, config.seed)
        test_set = LabelledImages.from_tensors(test_images, test_labels)
        accuracy = measure_accuracy(classifier, test_set)
        del training_set
    with budget.stage("reserve"):
        reserve_evaluation(config, splits, test_images, budget)
    budget.check(MINIMUM_MINUTES, "fewer --evaluation_images or --max_train_samples save time")
    logger.info(
        f"{budget.minutes_left:.1f} minutes of training, then "
        f"{budget.reserved_seconds / 60:.1f} to encode, sample and measure."
    )
    training = train(config, splits, budget)
    with budget.stage("evaluation"):
        pipeline = load_pipeline(str(output_dir / "model"))
        box = splits.validation.unpadded_box()
        assert box is not None, "28x28 pixels are padded to 32x32"
        with budget.stage("reconstruction"):
            figures = measure_test_images(pipeline, test_images, box, output_dir, budget)
        with budget.stage("sampling"):
            figures |= measure_samples(config, pipeline, classifier, budget)
    for key, count in (
        ("test_images", len(test_images)),
        ("label_agreement_images", config.evaluation_images),
    ):
        if figures[key] < count:
            logger.warning(
                f"the machine has slowed: {key} is {figures[key]:,} instead of {count:,}, to keep "
                f"to {config.max_minutes:g} minutes"
            )
    report = {
        **asdict(config),
        "train_images": len(splits.train),
        "validation_fingerprint": splits.validation_fingerprint,
        **figures,
        "classifier_real_test_accuracy": accuracy,
        **training,
        **budget.stage_seconds,
        "total_seconds": budget.total_seconds,
        **machine_figures(),
    }
    write_json(output_dir / "report.json", report)
    update_card(output_dir / "model", card_metrics(report, pipeline, IMAGES["data"]), output_dir)
    print(describe_quickstart(report, output_dir))
    return report
