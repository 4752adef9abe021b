"""The main job on built-in real data, from nothing: train, sample, measure, save."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from hf_latent.command import Seed, Settings
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.evaluation.machine import machine_figures
from hf_latent.evaluation.measures.classifier import (
    LabelledImages,
    measure_accuracy,
    train_classifier,
)
from hf_latent.experiments.evaluate_model import update_card
from hf_latent.experiments.quickstart_report import (
    card_metrics,
    measure_kept,
    measure_samples,
    summarize,
    training_figures,
)
from hf_latent.experiments.time_budget import TimeBudget
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.models.presets import (
    create_autoencoder,
    create_denoiser,
    create_scheduler,
)
from hf_latent.output import check_output_dir, replaced_whole, write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig

IMAGES: dict[str, Any] = {"data": "fashion_mnist", "resolution": 32, "resize_mode": "pad"}
AUTOENCODER = {
    "train_batch_size": 16,
    "learning_rate": 6e-3,
    "adam_weight_decay": 1e-4,
    "ema_decay": 0.995,
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
# Sample grid at the end of a denoiser's training: images times steps.
GRID_IMAGE_STEPS = 80 * 20


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(Settings):
    """Train, sample, measure and save a latent diffusion model of built-in images.

    Attributes:
        output_dir: the folder for the model, its pictures and report.json.
        overwrite_output_dir: accept a folder with files in it and replace those.
        train_vae: train an autoencoder too, in place of the released fashion-mnist-f4.
        max_minutes: for the whole command; evaluation is reserved first, the rest is training.
        guidance_scale: classifier-free guidance of the samples, 1 is off.
        num_inference_steps: sampling steps.
        evaluation_images: generated images that label agreement is measured on.
        max_train_samples: so many training images, drawn from the seed; unset, all.
        seed: of everything random.
    """

    output_dir: str = "hf-latent-quickstart"
    overwrite_output_dir: bool = False
    train_vae: bool = False
    max_minutes: PositiveFloat = 6.0
    guidance_scale: NonNegativeFloat = 2.0
    num_inference_steps: PositiveInt = 20
    evaluation_images: PositiveInt = 1000
    max_train_samples: PositiveInt | None = None
    seed: Seed = 0

    def images_config(self) -> ImagesConfig:
        """Return which images are used, and how."""
        return ImagesConfig(**IMAGES, seed=self.seed, max_train_samples=self.max_train_samples)


def load_tensors(dataset: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Read all of a small data set.

    Returns:
        Images `(N, C, H, W)` float32 in [-1, 1], and labels `(N,)` int64.
    """
    assert dataset.labels is not None
    return dataset.view(mirrored=False).read(), dataset.labels


def reserve_evaluation(
    config: QuickstartConfig, splits: ImageSplits, test_images: torch.Tensor, budget: TimeBudget
) -> None:
    """Reserve time for what comes between and after the trainings, timed on untrained models."""
    if config.train_vae:
        vae: Autoencoder = create_autoencoder("tiny", splits.image_shape[0], splits.image_shape[1])
    else:
        vae = load_autoencoder(RELEASED_AUTOENCODER)
    unet = create_denoiser("tiny", vae, splits.image_shape, splits.num_classes)
    pipeline = LatentDiffusionPipeline(vae.eval(), unet.eval(), create_scheduler("flow"))
    images = test_images[:200]
    # The latents of all images, and before them the latent scale.
    encoded = len(splits.train) * (2 if config.train_vae else 1) + len(splits.validation)
    # Samples to score, and the grid at the end of the denoiser's training.
    image_steps = config.evaluation_images * config.num_inference_steps + GRID_IMAGE_STEPS
    budget.reserve_model(
        pipeline, images, encoded, len(test_images), image_steps, config.guidance_scale
    )


def train(config: QuickstartConfig, splits: ImageSplits, budget: TimeBudget) -> dict[str, Any]:
    """Train the denoiser, and before it the autoencoder if asked, in what is left of the time.

    Returns:
        Figures for the report.
    """
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
        vae, figures = str(autoencoder.model_dir), training_figures("autoencoder", autoencoder)
        kl = autoencoder.held_out.kl_nats_per_latent_value
        figures["autoencoder_kl_nats_per_latent_value"] = kl
    with budget.stage("denoiser"):
        denoiser = train_denoiser(
            DenoiserConfig(
                **shared | DENOISER,
                output_dir=str(output_dir / "denoiser"),
                vae=vae,
                max_train_minutes=max(budget.minutes_left, MINIMUM_MINUTES),
            ),
            splits,
            now=budget.now,
        )
    with replaced_whole(output_dir / "model") as temporary:
        denoiser.model_dir.rename(temporary)
    return {
        "autoencoder": "trained here" if config.train_vae else RELEASED_AUTOENCODER,
        **figures,
        **training_figures("denoiser", denoiser),
        "encode_seconds": denoiser.encode_seconds,
        "encode_images_per_second": denoiser.encoded_images / denoiser.encode_seconds,
        "vae_hash_before": denoiser.vae_hash_before,
        "vae_hash_after": denoiser.vae_hash_after,
    }


def run_quickstart(
    config: QuickstartConfig,
    started: float | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Run the whole chain and leave model/, samples.png, reconstructions.png and report.json.

    Args:
        config: the settings.
        started: what `now` was when the command was called; None: it is called now.
        now: the clock, in seconds.

    Returns:
        The report.

    Raises:
        UserError: if the folder cannot be written or the time is too short.
    """
    budget = TimeBudget(config.max_minutes, started, now)
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    trained = "an autoencoder, then a denoiser" if config.train_vae else "a denoiser"
    space = (
        "its latent space" if config.train_vae else f"the latent space of {RELEASED_AUTOENCODER}"
    )
    print(
        f"Fashion-MNIST in {config.max_minutes:g} minutes: train {trained} in {space};\n"
        f"sample ten classes, measure, and save the model to {output_dir}/model."
    )
    with budget.stage("setup"):
        splits = open_images(config.images_config())
        test_images, test_labels = load_tensors(splits.validation)
    with budget.stage("classifier"):
        training_set = LabelledImages.from_tensors(*load_tensors(splits.train))
        classifier = train_classifier(training_set, splits.num_classes or 1, config.seed)
        test_set = LabelledImages.from_tensors(test_images, test_labels)
        accuracy = measure_accuracy(classifier, test_set)
        del training_set
    with budget.stage("reserve"):
        reserve_evaluation(config, splits, test_images, budget)
    budget.check(MINIMUM_MINUTES, "fewer --evaluation_images or --max_train_samples take less")
    print(
        f"{budget.minutes_left:.1f} minutes of training, then "
        f"{budget.reserved_seconds / 60:.1f} to encode, sample and measure."
    )
    training = train(config, splits, budget)
    with budget.stage("evaluation"):
        pipeline = load_pipeline(str(output_dir / "model"))
        box = splits.validation.unpadded_box()
        assert box is not None, "28x28 pixels are padded to 32x32"
        figures = measure_kept(pipeline, test_images, box, output_dir)
        figures |= measure_samples(
            pipeline,
            classifier,
            config.evaluation_images,
            config.seed,
            config.guidance_scale,
            config.num_inference_steps,
            output_dir,
            now,
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
    print(summarize(report, output_dir))
    return report
