"""The files that a training saves with its model: training.json, config.yaml, picture and card."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin

from hf_latent.data.images.open import ImageSplits
from hf_latent.errors import UserError
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.pictures import copy_picture
from hf_latent.hub.card.render import write_model_card
from hf_latent.hub.card.results import GENERATED
from hf_latent.hub.card.text import one_line
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import find_model, is_own, quiet_libraries
from hf_latent.models.presets import Compression, measure_compression
from hf_latent.output import read_json, replaced_whole, write_json, write_text
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.weights import check_weights
from hf_latent.training.latents.sources import LatentSource
from hf_latent.training.run.accelerator import STORAGE_SETTINGS, TrainingConfig
from hf_latent.training.run.clock import TrainingSummary
from hf_latent.training.run.pictures import picture_path

logger = logging.getLogger(__name__)

# Settings that may be paths of this machine.
PATHS = {"model", "data", "vae", "pretrained_vae", "pretrained_unet", "latents", "guide"}
PATHS |= {"text_encoder"}
# Figures of an autoencoder that the reports of its denoisers repeat.
AUTOENCODER_FIGURES = {
    *("data", "train_images", "image_shape", "resize_mode", "horizontal_flip", "steps", "seconds"),
    *("pretrained_vae", "images_seen"),
    *("images_per_second", "train_batch_size", "gradient_accumulation_steps", "processes"),
    *("validation_fingerprint", "device", "cpu_cores", "torch_threads", "perceptual_network"),
}

# Figures of the images and latents of a denoiser, and of its training, that its students repeat.
OF_IMAGES = {
    *("data", "train_images", "held_out_split_images", "validation_fingerprint"),
    *("resize_mode", "horizontal_flip", "image_shape", "latent_shape", "compression_ratio"),
}
OF_TRAINING = ("steps", "images_seen", "seconds")
# Figures of an evaluation that the card of a student shows beside the student's own.
OF_METRICS = (
    *("comparable_if_equal", "denoiser_evaluations_per_image"),
    *("fd_subset_values", "fd_subset_std", *(metric.key for metric in GENERATED)),
)


def portable_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that affect the model, without paths of this machine.

    `--config` reads them again, if an `--output_dir` is given.
    """
    return {
        name: shown_name(value) if name in PATHS and value is not None else value
        for name, value in asdict(config).items()
        if name not in STORAGE_SETTINGS
    }


def training_figures(summary: TrainingSummary, accelerator: Accelerator) -> dict[str, Any]:
    """Return the figures that both trainings report, flat.

    `images_per_second` is missing if no step ran in this process.
    """
    device = accelerator.device
    rate = summary.images_per_second
    return {
        "steps": summary.steps,
        "images_seen": summary.images_seen,
        "seconds": summary.seconds,
        **({} if math.isnan(rate) else {"images_per_second": rate}),
        "train_loss": summary.train_loss,
        "held_out_loss": list(summary.validation_losses.values())[-1],
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "mixed_precision": accelerator.mixed_precision,
        **machine_figures(),
    }


def image_figures(data: str, splits: ImageSplits, compression: Compression) -> dict[str, Any]:
    """Return figures of an autoencoder's images, flat.

    Args:
        data: the setting of that name.
        compression: of the autoencoder.
    """
    return {
        "data": shown_name(data),
        "train_images": len(splits.train),
        "held_out_split_images": len(splits.validation),
        "validation_fingerprint": splits.validation_fingerprint,
        **splits.summary.figures(),
        **vars(compression),
        "compression_ratio": compression.ratio,
    }


def denoiser_figures(
    vae: str, source: LatentSource, pipeline: LatentDiffusionPipeline
) -> dict[str, Any]:
    """Return figures of a denoiser's images, latents and autoencoder, flat.

    Args:
        vae: the setting of that name.
        source: of the latents.
        pipeline: the trained one, whose weights are hashed.

    Returns:
        The figures; without the time of encoding if nothing was encoded.
    """
    compression = measure_compression(pipeline.vae, source.image_shape)
    vae_sha256 = hash_weights(pipeline.vae)
    encoding = {"encode_seconds": source.encode_seconds, "encoded_images": source.encoded_images}
    return {
        "data": source.data,
        "train_images": source.train_images,
        "held_out_split_images": source.held_out_images,
        "validation_fingerprint": source.validation_fingerprint,
        **source.data_figures,
        **vars(compression),
        "compression_ratio": compression.ratio,
        **(encoding if source.encoded_images else {}),
        "autoencoder": None if is_own(vae) else vae,
        "vae_weights_sha256": vae_sha256,
        "unet_weights_sha256": hash_weights(pipeline.unet),
        **autoencoder_figures(vae, vae_sha256),
    }


def autoencoder_figures(vae: str, weights_sha256: str) -> dict[str, Any]:
    """Return the figures of the training of a denoiser's autoencoder.

    Args:
        vae: the folder of an autoencoder or pipeline, or the name of a released autoencoder.
        weights_sha256: of the autoencoder's weights. A report about other weights is ignored.

    Returns:
        Flat figures, each name with the prefix `autoencoder_`.
    """
    report: dict[str, Any] = {}
    with suppress(UserError):
        report = read_json(Path(find_model(vae), "training.json"))
    if report.get("vae_weights_sha256") != weights_sha256:
        return {}
    if "unet_weights_sha256" in report:  # a pipeline's report has the figures already
        return {key: value for key, value in report.items() if key.startswith("autoencoder_")}
    return {
        f"autoencoder_{key}": value
        for key, value in report.items()
        if key in AUTOENCODER_FIGURES or key.startswith("held_out_")
    }


def student_figures(
    model: str, teacher: LatentDiffusionPipeline, student: LatentDiffusionPipeline
) -> dict[str, Any]:
    """Return figures of a student's teacher, and of the teacher's images and latents, flat.

    Args:
        model: the setting of that name, which names the teacher.
        teacher: its weights are hashed. Its reports about other weights are ignored.
        student: its weights are hashed.
    """
    weights = {f"{x}_weights_sha256": hash_weights(getattr(teacher, x)) for x in ("vae", "unet")}
    training, metrics = dict[str, Any](), dict[str, Any]()
    with suppress(UserError):
        facts = read_model_facts(Path(find_model(model)))
        training, metrics = facts.training, facts.metrics
    return {
        **{k: x for k, x in training.items() if k in OF_IMAGES or k.startswith("autoencoder")},
        **{f"teacher_training_{x}": training[x] for x in OF_TRAINING if x in training},
        **{f"teacher_metrics_{x}": metrics[x] for x in OF_METRICS if x in metrics},
        **{f"teacher_{name}": sha256 for name, sha256 in weights.items()},
        "teacher": None if is_own(model) else model,
        "vae_weights_sha256": weights["vae_weights_sha256"],
        "unet_weights_sha256": hash_weights(student.unet),
    }


def save_model(
    model: ModelMixin | LatentDiffusionPipeline,
    output_dir: Path,
    settings: dict[str, Any],
    figures: dict[str, Any],
    picture_name: str,
) -> None:
    """Save a trained model, its reports, its last picture and its card to `output_dir/model`.

    If the picture or the card fails, a line says so and the training continues: the model is saved
    and can be pushed, and `hf-latent evaluate` makes the card again.

    Args:
        model: with the averaged weights.
        output_dir: the run folder.
        settings: from `portable_settings`.
        figures: of the training, with `steps` and the hash of each component's weights.
        picture_name: file name in the model folder of the last step's picture.
    """
    folder = output_dir / "model"
    try:
        for name, part in getattr(model, "components", {"autoencoder": model}).items():
            if isinstance(part, ModelMixin):
                check_weights(name, part)
    except ValueError as error:
        raise UserError(f"the model is not saved: {error}; lower --learning_rate") from error
    with replaced_whole(folder, written=MODEL_FILES) as temporary, quiet_libraries():
        model.save_pretrained(temporary)
    settings = settings | {key: figures[key] for key in settings if key in figures}
    if settings.get("data", "") is None:  # a latent cache may not name its images
        del settings["data"]
    write_json(folder / "training.json", settings | figures)
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    picture = picture_path(output_dir, figures["steps"])
    with warn_of_failure(f"the model is saved in {folder}; its picture"):
        copy_picture(picture, folder / picture_name)
    with warn_of_failure(f"the model is saved in {folder}; its card"):
        write_model_card(folder)


@contextmanager
def warn_of_failure(part: str) -> Iterator[None]:
    """Report that a part could not be made, and continue: the other processes wait for this one."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        logger.warning(one_line(f"{part} could not be made ({reason})"))
