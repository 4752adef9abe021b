"""What a model folder says about its model: configurations, weights, and the reports beside them.

    RUN/model/
        model_index.json, or config.json   a pipeline, or an autoencoder
        training.json, config.yaml         what its training knows, and the settings
        metrics.json                       what `hf-latent evaluate` measured
        *.png                              pictures for the card

A report names the weights that it is about by their hash. One about other weights is left out, and
its pictures too: so no card shows a figure of another model.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hf_latent.data.fashion_mnist import HUB_ID as FASHION_MNIST
from hf_latent.errors import UserError
from hf_latent.hub.card.text import one_line
from hf_latent.hub.card.weights import SavedWeights, read_saved_weights
from hf_latent.models.load import loading
from hf_latent.models.presets import Compression, measure_compression
from hf_latent.output import read_json
from hf_latent.pipeline.encode import downsampling_factor

# By the reports that a picture goes with; the first one for what a training leaves too.
PICTURES = {
    "samples.png": ("training", "metrics"),
    "reconstructions.png": ("training", "metrics"),
    "ablation.png": ("metrics",),
    "closest_by_latents.png": ("metrics",),
}
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
HELD_OUT = "held-out images"
_HUB_IDS = {"fashion_mnist": FASHION_MNIST, "fashion_mnist_full": FASHION_MNIST}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


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

    @property
    def measured(self) -> dict[str, Any]:
        """What the figures are taken from: an autoencoder's training measures too."""
        return self.metrics if self.kind == "pipeline" else self.training | self.metrics

    @property
    def trained(self) -> dict[str, Any]:
        """What is known of the training. A release's report adds to it: all of an autoencoder's."""
        added = {k: v for k, v in self.metrics.items() if k == "data_name"}
        return self.training | added if self.kind == "pipeline" else self.measured

    @property
    def autoencoder(self) -> dict[str, Any]:
        """What a pipeline's training.json carries along of its autoencoder's training."""
        prefix = "autoencoder_"
        found = {k: v for k, v in self.training.items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): v for k, v in found.items()}

    @property
    def prefix(self) -> str:
        """What the keys of the figures of reconstructions begin with."""
        if self.kind == "pipeline":
            return "reconstruction_"
        return "test_" if "test_psnr_db" in self.measured else "held_out_"

    @property
    def unseen(self) -> bool:
        """Whether the figures are of images that are known to be held out of the training.

        They are if an autoencoder's training measured them, and if both reports have one
        fingerprint. A release of an autoencoder has one report of both.
        """
        if self.kind == "autoencoder" and (self.prefix == "held_out_" or not self.training):
            return True
        fingerprint = self.metrics.get("validation_fingerprint")
        return (
            fingerprint is not None and self.training.get("validation_fingerprint") == fingerprint
        )

    @property
    def held_out(self) -> str:
        """What to call the images that an evaluation held out."""
        return HELD_OUT if self.unseen else "images held out in the evaluation"

    @property
    def guide(self) -> str | None:
        """The name of the denoiser that guided the measured samples; None: none did."""
        metrics = self.metrics
        if metrics.get("guidance_scale") == 1 or "guide_unet_weights_sha256" not in metrics:
            return None
        return one_line(metrics.get("guide") or "guide_unet")

    @property
    def title(self) -> str:
        """The name of a release, or what the model is."""
        name = self.trained.get("data_name", self.trained.get("data"))
        what = "Latent diffusion model" if self.kind == "pipeline" else "Autoencoder"
        return str(self.measured.get("name") or (f"{what} of {name}" if name else what))


def hub_id(data: Any) -> str | None:
    """Return a data set's id on the Hub.

    Args:
        data: as a report names it; a local folder has no slash there.

    Returns:
        None if it has no id.
    """
    name = _HUB_IDS.get(str(data), str(data))
    return name if _HUB_ID.fullmatch(name) else None


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
    known, recipe = {"training": training, "metrics": metrics}, reports / "config.yaml"
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
        recipe=recipe.read_text(encoding="utf-8", errors="replace")
        if training and _is_file(recipe)
        else None,
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
    """Return a report, or nothing if it is about other weights, those of a guide included."""
    ours = all(
        report.get(f"{name}_weights_sha256") == (weights[name].sha256 if name in weights else None)
        for name in {*weights, "guide_unet"}
    )
    return report if ours else {}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file, without its nulls; nothing if there is none."""
    values = read_json(path) if _is_file(path) else {}
    return {key: value for key, value in values.items() if value is not None}


def _is_file(path: Path) -> bool:
    """Return whether a file is there. A link may lead to one that is no part of the model."""
    return path.is_file() and not path.is_symlink()


def _objective(scheduler: dict[str, Any]) -> str | None:
    if str(scheduler.get("_class_name")).startswith("FlowMatch"):
        return "flow"
    return scheduler.get("prediction_type")
