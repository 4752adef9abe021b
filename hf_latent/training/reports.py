"""What a training leaves beside its model: training.json, config.yaml, a picture and the card."""

import json
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
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.hub.card.pictures import copy_picture
from hf_latent.hub.card.render import write_model_card
from hf_latent.hub.card.text import one_line
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import find_released
from hf_latent.models.presets import Compression, measure_compression
from hf_latent.output import replaced_whole, write_json, write_text
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.latents.sources import LatentSource
from hf_latent.training.run.accelerator import STORAGE_SETTINGS, TrainingConfig
from hf_latent.training.run.clock import TrainingSummary
from hf_latent.training.run.pictures import picture_path

# Settings that name files of this machine.
PATHS = {"data", "vae", "pretrained_vae", "pretrained_unet", "latents"}
CARRIED = {
    *("data", "train_images", "image_shape", "resize_mode", "horizontal_flip", "steps", "seconds"),
    *("pretrained_vae", "images_seen"),
    *("images_per_second", "train_batch_size", "gradient_accumulation_steps", "processes"),
    *("validation_fingerprint", "device", "cpu_cores", "torch_threads", "perceptual_network"),
}


def portable_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that make the model, without paths of this machine.

    Args:
        config: of the run.

    Returns:
        What `--config` reads, with another `--output_dir`.
    """
    return {
        name: shown_name(value) if name in PATHS and value is not None else value
        for name, value in asdict(config).items()
        if name not in STORAGE_SETTINGS
    }


def describe_training(summary: TrainingSummary, accelerator: Accelerator) -> dict[str, Any]:
    """Return the figures that both trainings report.

    Args:
        summary: of the training.
        accelerator: says how many processes there were, and on what.

    Returns:
        Flat figures; without a rate if no step ran in this process.
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


def describe_images(data: str, splits: ImageSplits, compression: Compression) -> dict[str, Any]:
    """Return what an autoencoder was trained on.

    Args:
        data: the images, as the settings name them.
        splits: the images.
        compression: of the autoencoder.

    Returns:
        Flat figures.
    """
    return {
        "data": shown_name(data),
        "train_images": len(splits.train),
        "held_out_split_images": len(splits.validation),
        "validation_fingerprint": splits.validation_fingerprint,
        "image_shape": compression.image_shape,
        "latent_shape": compression.latent_shape,
        "compression_ratio": compression.ratio,
    }


def describe_denoiser(
    vae: str, source: LatentSource, pipeline: LatentDiffusionPipeline
) -> dict[str, Any]:
    """Return what a denoiser was trained on: images, latents and autoencoder.

    Args:
        vae: the autoencoder, as the settings name it.
        source: of the latents.
        pipeline: trained.

    Returns:
        Flat figures, with the hashes of the weights and what is known of the autoencoder; without
        the time of encoding if nothing was encoded.
    """
    compression = measure_compression(pipeline.vae, source.image_shape)
    vae_sha256 = hash_weights(pipeline.vae)
    is_local = find_released(vae) == vae and Path(vae).exists()
    encoding = {"encode_seconds": source.encode_seconds, "encoded_images": source.encoded_images}
    return {
        "data": source.data,
        "train_images": source.train_images,
        "held_out_split_images": source.held_out_images,
        "validation_fingerprint": source.validation_fingerprint,
        "image_shape": compression.image_shape,
        "latent_shape": compression.latent_shape,
        "compression_ratio": compression.ratio,
        **(encoding if source.encoded_images else {}),
        "autoencoder": None if is_local else vae,
        "vae_weights_sha256": vae_sha256,
        "unet_weights_sha256": hash_weights(pipeline.unet),
        **autoencoder_figures(vae, vae_sha256),
    }


def autoencoder_figures(vae: str, weights_sha256: str) -> dict[str, Any]:
    """Return what is known of the training of a denoiser's autoencoder.

    Args:
        vae: the folder of an autoencoder or of a pipeline, or a released autoencoder's name.
        weights_sha256: of its weights; what is told of others is left out.

    Returns:
        Flat figures, `autoencoder_` before each name.
    """
    folder = Path(find_released(vae))
    report: Any = None
    with suppress(OSError, ValueError, RecursionError):
        report = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    if not isinstance(report, dict) or report.get("vae_weights_sha256") != weights_sha256:
        return {}
    if "unet_weights_sha256" in report:  # of a pipeline, which carries them along already
        return {key: value for key, value in report.items() if key.startswith("autoencoder_")}
    return {
        f"autoencoder_{key}": value
        for key, value in report.items()
        if key in CARRIED or key.startswith("held_out_")
    }


def save_model(
    model: ModelMixin | LatentDiffusionPipeline,
    output_dir: Path,
    settings: dict[str, Any],
    figures: dict[str, Any],
    picture_name: str,
) -> None:
    """Save a trained model whole, and its reports beside it.

    Args:
        model: with the averaged weights.
        output_dir: the run's folder; the model goes to `model` in it.
        settings: of the run, as `portable_settings` gives them.
        figures: of the training, with the number of `steps` and the hash of each part's weights.
        picture_name: of the last step's picture, beside the model.
    """
    folder = output_dir / "model"
    with replaced_whole(folder) as temporary:
        model.save_pretrained(temporary)
    picture = picture_path(output_dir, figures["steps"])
    write_model_reports(folder, settings, figures, picture, picture_name)


def write_model_reports(
    folder: Path,
    settings: dict[str, Any],
    figures: dict[str, Any],
    picture: Path,
    picture_name: str,
) -> None:
    """Write the reports, the picture and the card into a model's folder.

    A picture or a card that cannot be made costs a line, not the end of the training: the model is
    saved, may be pushed, and `hf-latent evaluate` makes its card anew.

    Args:
        folder: the saved model's.
        settings: of the run, as `portable_settings` gives them.
        figures: of the training, with the hash of each part's weights.
        picture: the last one of the run; if there is none, the card shows none.
        picture_name: beside the model.
    """
    settings = settings | {key: figures[key] for key in settings if key in figures}
    if settings["data"] is None:  # what a latent cache was made of need not be known
        del settings["data"]
    write_json(folder / "training.json", settings | figures)
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    with _line_for_failure(folder, "picture"):
        if picture.is_file():
            copy_picture(picture, folder / picture_name)
    with _line_for_failure(folder, "card"):
        write_model_card(folder)


@contextmanager
def _line_for_failure(folder: Path, made: str) -> Iterator[None]:
    """Print what goes wrong inside, and go on: the other processes wait for this one."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        text = f"the model is whole, in {folder}; its {made} could not be made ({reason})"
        print(one_line(text))
