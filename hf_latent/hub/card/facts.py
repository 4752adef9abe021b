"""What a model folder says about its model: configurations, weights, and the reports beside them.

    RUN/model/
        model_index.json, or config.json   a pipeline, or an autoencoder
        training.json, config.yaml         what its training knows, and the settings
        metrics.json                       what `hf-latent evaluate` measured
        *.png                              pictures for the card

A report names the weights that it is about by their hash. One about other weights is left out, and
its pictures too: so no card shows a figure of another model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hf_latent.errors import UserError
from hf_latent.hub.card.weights import SavedWeights, read_saved_weights
from hf_latent.models.load import loading
from hf_latent.models.presets import Compression, measure_compression
from hf_latent.pipeline.encode import downsampling_factor

# By the reports that a picture goes with; the first one for what a training leaves too.
PICTURES = {
    "samples.png": ("training", "metrics"),
    "reconstructions.png": ("training", "metrics"),
    "ablation.png": ("metrics",),
    "closest_by_latents.png": ("metrics",),
}
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a saved model.

    Attributes:
        kind: what the folder holds.
        compression: the shapes of an image and of its latent.
        weights: of `vae` and, in a pipeline, `unet`; of `guide_unet` where there is one.
        vae_class: the autoencoder's class in diffusers.
        has_code: whether a pipeline's code lies beside it, for those who have diffusers only.
        folded: whether the scale of the latents is folded into the autoencoder's weights.
        scheduler: its class, in a pipeline.
        guidance: what the pipeline says of it; empty where it says nothing.
        objective: flow, or the prediction type, in a pipeline.
        num_classes: None without classes.
        class_names: by label; empty where none are known.
        training: flat figures of training.json, without those that are null.
        metrics: the same of metrics.json.
        recipe: the training's settings as YAML.
        pictures: names of the pictures that are there and show this model.
    """

    kind: Literal["pipeline", "autoencoder"]
    compression: Compression
    weights: dict[str, SavedWeights]
    vae_class: str
    has_code: bool
    folded: bool
    scheduler: str | None
    guidance: dict[str, Any]
    objective: str | None
    num_classes: int | None
    class_names: dict[int, str]
    training: dict[str, Any]
    metrics: dict[str, Any]
    recipe: str | None
    pictures: list[str]


def read_model_facts(folder: Path, reports: Path | None = None) -> ModelFacts:
    """Read what a model folder says.

    Args:
        folder: of a pipeline or of an autoencoder.
        reports: where training.json, config.yaml, metrics.json and the pictures are; None: in the
            same folder.

    Returns:
        The facts, whose reports are about these very weights.

    Raises:
        UserError: if there is no such model, or a report cannot be read.
    """
    reports = reports or folder
    is_pipeline = (folder / "model_index.json").is_file()
    parts = {"vae": folder / "vae", "unet": folder / "unet"} if is_pipeline else {"vae": folder}
    index = _read_json(folder / "model_index.json")
    if index.get("guide_unet", [None, None]) != [None, None]:
        parts["guide_unet"] = folder / "guide_unet"
    vae_config = _read_json(parts["vae"] / "config.json")
    vae_class = str(vae_config.get("_class_name"))
    if vae_class not in VAE_CLASSES:
        raise UserError(f"{folder} holds neither a pipeline nor an autoencoder of diffusers")
    weights = {name: read_saved_weights(path) for name, path in parts.items()}
    # A training knows of no guide.
    trained = {name: saved for name, saved in weights.items() if name != "guide_unet"}
    training = _about(_read_json(reports / "training.json"), trained)
    metrics = _about(_read_json(reports / "metrics.json"), weights)
    unet_config = _read_json(parts["unet"] / "config.json") if is_pipeline else {}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    with loading(str(folder), "model"):
        image_shape = (training | metrics).get("image_shape")
        compression = _measure(vae_config, unet_config, None if is_pipeline else image_shape)
        embeddings = unet_config.get("num_class_embeds")
        num_classes = None if embeddings is None else int(embeddings) - 1
        names = index.get("id2label") or {}
        class_names = {int(label): str(names[label]) for label in sorted(names, key=int)}
    guidance = index.get("guidance")
    known = {"training": training, "metrics": metrics}
    return ModelFacts(
        kind="pipeline" if is_pipeline else "autoencoder",
        compression=compression,
        weights=weights,
        vae_class=vae_class,
        has_code=isinstance(index.get("_class_name"), list),
        folded="_folded_latents_std" in vae_config,
        scheduler=scheduler.get("_class_name"),
        guidance=guidance if isinstance(guidance, dict) else {},
        objective=_objective(scheduler),
        num_classes=num_classes,
        class_names=class_names,
        training=training,
        metrics=metrics,
        recipe=_read_recipe(reports / "config.yaml") if training else None,
        pictures=[
            name
            for name, needed in PICTURES.items()
            if _is_file(reports / name) and any(known[report] for report in needed)
        ],
    )


def _measure(
    vae_config: dict[str, Any], unet_config: dict[str, Any], image_shape: list[int] | None
) -> Compression:
    """Return the shapes that a denoiser fixes, or else those of the images trained on."""
    with torch.device("meta"):
        vae = VAE_CLASSES[vae_config["_class_name"]].from_config(vae_config)
    factor = downsampling_factor(vae)
    if unet_config:
        size, scale = unet_config["sample_size"], factor
    else:  # an AutoencoderTiny has no size of its own
        size, scale = vae_config.get("sample_size", 32 * factor), 1
    height, width = (scale * x for x in ([size, size] if isinstance(size, int) else size))
    channels, height, width = image_shape or (vae.config.in_channels, height, width)
    return measure_compression(vae, (channels, height, width))


def _about(report: dict[str, Any], weights: dict[str, SavedWeights]) -> dict[str, Any]:
    """Return a report, or nothing where it is about other weights, those of a guide included."""
    ours = all(
        report.get(f"{name}_weights_sha256") == (weights[name].sha256 if name in weights else None)
        for name in {*weights, "guide_unet"}
    )
    return report if ours else {}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file, without its nulls; nothing where there is none."""
    if not _is_file(path):
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): mend or remove it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} has no keys and values: mend or remove it")
    return {key: value for key, value in values.items() if value is not None}


def _read_recipe(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if _is_file(path) else None


def _is_file(path: Path) -> bool:
    """Tell whether a file is there: a link may lead to one that is no part of the model."""
    return path.is_file() and not path.is_symlink()


def _objective(scheduler: dict[str, Any]) -> str | None:
    if str(scheduler.get("_class_name")).startswith("FlowMatch"):
        return "flow"
    return scheduler.get("prediction_type")
