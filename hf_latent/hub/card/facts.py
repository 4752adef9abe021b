"""The facts of a model folder: configurations, weights, and the reports beside them.

    RUN/model/
        model_index.json, or config.json   a pipeline, or an autoencoder
        training.json, config.yaml         the training's report and its settings
        metrics.json                       what `hf-latent evaluate` measured
        *.png                              pictures for the card

A report holds the hash of the weights that it describes. A report of other weights is ignored, and
so are its pictures: no card shows figures of another model.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch

from hf_latent.data.fashion_mnist import HUB_ID as FASHION_MNIST
from hf_latent.errors import UserError
from hf_latent.hub.card.text import one_line, whole
from hf_latent.hub.card.weights import SavedWeights, read_saved_weights
from hf_latent.hub.model_files import is_file
from hf_latent.models.load import find_component, loading
from hf_latent.models.presets import Compression, image_size, measure_compression
from hf_latent.output import read_json
from hf_latent.pipeline.autoencoders import KINDS, downsampling_factor, image_channels
from hf_latent.pipeline.decode import IMAGE_VALUES

# The reports that each picture belongs to; a card shows it if one of them is there.
PICTURES = {
    "samples.png": ("training", "metrics"),
    "reconstructions.png": ("training", "metrics"),
    "ablation.png": ("metrics",),
    "closest_by_latents.png": ("metrics",),
}
HELD_OUT = "held-out images"
_HUB_IDS = {"fashion_mnist": FASHION_MNIST, "fashion_mnist_full": FASHION_MNIST}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a saved model.

    Attributes:
        kind: what the folder holds.
        compression: the shapes of an image and of its latent.
        weights: of `vae`, and of a pipeline's `unet` and `guide_unet`.
        vae_class: the autoencoder's class in diffusers.
        has_code: whether the pipeline's code lies beside it, so that diffusers alone loads it.
        value_range: the pixel values that become -1 and 1, a pair for all channels or for each;
            empty if the images have those of a picture.
        value_dtype: of these values in the files.
        folded: whether the scale of the latents is folded into the autoencoder's weights.
        scheduler: class of a pipeline's scheduler.
        guidance: the pipeline's default guidance; empty if it has none.
        num_inference_steps: the pipeline's default number of steps; None if it has none.
        distilled: whether the denoiser makes only these steps, without guidance.
        objective: of a pipeline: flow, or the scheduler's prediction type.
        num_classes: None without classes.
        class_names: by label; may be empty.
        unet_class: the denoiser's class in diffusers; None of an autoencoder.
        text_encoder: the text encoder's class in transformers; None without prompts.
        prompt_length: number of tokens of a prompt; None if unknown.
        training: flat figures of training.json, without nulls.
        metrics: flat figures of metrics.json, without nulls.
        recipe: the training's settings as YAML.
        pictures: names of the pictures of this model.
    """

    kind: Literal["pipeline", "autoencoder"]
    compression: Compression
    weights: dict[str, SavedWeights]
    vae_class: str
    has_code: bool
    value_range: list[tuple[float, float]]
    value_dtype: str
    folded: bool
    scheduler: str | None
    guidance: dict[str, Any]
    num_inference_steps: int | None
    distilled: bool
    objective: str | None
    num_classes: int | None
    class_names: dict[int, str]
    unet_class: str | None
    text_encoder: str | None
    prompt_length: int | None
    training: dict[str, Any]
    metrics: dict[str, Any]
    recipe: str | None
    pictures: list[str]

    @property
    def measured(self) -> dict[str, Any]:
        """The report of the card's figures: an autoencoder's training measures too."""
        return self.metrics if self.kind == "pipeline" else self.training | self.metrics

    @property
    def trained(self) -> dict[str, Any]:
        """The report of the training. A release's metrics.json adds to it."""
        added = {k: v for k, v in self.metrics.items() if k == "data_name"}
        return self.training | added if self.kind == "pipeline" else self.measured

    @property
    def autoencoder(self) -> dict[str, Any]:
        """The report of the autoencoder's training, which a pipeline's training.json repeats."""
        return without_prefix(self.training, "autoencoder_")

    @property
    def teacher(self) -> dict[str, Any]:
        """The figures of the teacher's images, if they are comparable with the model's own."""
        teacher, key = without_prefix(self.training, "teacher_metrics_"), "comparable_if_equal"
        return teacher if key in teacher and teacher[key] == self.metrics.get(key) else {}

    @property
    def prefix(self) -> str:
        """The prefix of the keys of reconstruction figures."""
        if self.kind == "pipeline":
            return "reconstruction_"
        return "test_" if "test_psnr_db" in self.measured else "held_out_"

    @property
    def unseen(self) -> bool:
        """Whether the training is known to have held out the images of the figures.

        An autoencoder's training measures on such images itself, and the one report of a released
        autoencoder does too. Otherwise both reports must have the same fingerprint.
        """
        if self.kind == "autoencoder" and (self.prefix == "held_out_" or not self.training):
            return True
        key = "validation_fingerprint"
        return key in self.metrics and self.metrics[key] == self.training.get(key)

    @property
    def held_out(self) -> str:
        """How a card calls the images that an evaluation held out."""
        return HELD_OUT if self.unseen else "images held out in the evaluation"

    @property
    def guide(self) -> str | None:
        """The name of the denoiser that guided the measured samples, or None."""
        metrics = self.metrics
        if metrics.get("guidance_scale") == 1 or "guide_unet_weights_sha256" not in metrics:
            return None
        return one_line(metrics.get("guide") or "guide_unet")

    @property
    def title(self) -> str:
        """The name of a released model, or a description."""
        name = self.trained.get("data_name", self.trained.get("data"))
        what = "Latent diffusion model" if self.kind == "pipeline" else "Autoencoder"
        return str(self.measured.get("name") or (f"{what} of {name}" if name else what))


def without_prefix(report: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries of a report whose keys begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in report.items() if k.startswith(prefix)}


def hub_id(data: Any) -> str | None:
    """Return a data set's id on the Hub, or None.

    Args:
        data: a report's name of the data; the name of a local folder has no slash.
    """
    name = _HUB_IDS.get(str(data), str(data))
    return name if _HUB_ID.fullmatch(name) else None


def read_model_facts(folder: Path) -> ModelFacts:
    """Read the facts of a model folder.

    Args:
        folder: of a pipeline or of an autoencoder.

    Raises:
        UserError: if there is no such model, or a report cannot be read.
    """
    is_pipeline = (folder / "model_index.json").is_file()
    parts = {"vae": folder / "vae", "unet": folder / "unet"} if is_pipeline else {"vae": folder}
    index = _read_json(folder / "model_index.json")
    if index.get("guide_unet", [None, None]) != [None, None]:
        parts["guide_unet"] = folder / "guide_unet"
    vae_config = _read_json(parts["vae"] / "config.json")
    vae_class = str(vae_config.get("_class_name"))
    if vae_class not in KINDS:
        raise UserError(f"{folder} holds neither a pipeline nor an autoencoder of diffusers")
    parts["vae"] = Path(*find_component(str(folder), "vae")) if is_pipeline else folder
    weights = {name: read_saved_weights(path) for name, path in parts.items()}
    trained = {name: saved for name, saved in weights.items() if name != "guide_unet"}
    training = _read_report(folder / "training.json", trained)
    metrics = _read_report(folder / "metrics.json", weights)
    unet_config = _read_json(parts["unet"] / "config.json") if is_pipeline else {}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    tokenizer = _read_json(folder / "tokenizer" / "tokenizer_config.json")
    with loading(str(folder), "model"):
        image_shape = (training | metrics).get("image_shape")
        compression = _measure(vae_config, unet_config, None if is_pipeline else image_shape)
        embeddings = unet_config.get("num_class_embeds")
        num_classes = None if embeddings is None else int(embeddings) - 1
        values = {"range": [], "dtype": "", **vae_config.get(IMAGE_VALUES, {})}
        value_range = [(float(low), float(high)) for low, high in values["range"]]
        names = index.get("id2label") or {}
        class_names = {int(label): str(names[label]) for label in sorted(names, key=int)}
    scheduler_class = scheduler.get("_class_name")
    is_flow = str(scheduler_class).startswith("FlowMatch")
    is_flow = is_flow or scheduler.get("prediction_type") == "flow_prediction"
    known, recipe = {"training": training, "metrics": metrics}, folder / "config.yaml"
    return ModelFacts(
        kind="pipeline" if is_pipeline else "autoencoder",
        compression=compression,
        weights=weights,
        vae_class=vae_class,
        has_code=isinstance(index.get("_class_name"), list),
        value_range=value_range,
        value_dtype=str(values["dtype"]),
        folded="_folded_latents_std" in vae_config,
        scheduler=scheduler_class,
        guidance=index.get("guidance", {}),
        num_inference_steps=whole(index.get("num_inference_steps")) or None,
        distilled=index.get("distilled") is True,
        objective="flow" if is_flow else scheduler.get("prediction_type"),
        num_classes=num_classes,
        class_names=class_names,
        unet_class=unet_config.get("_class_name"),
        text_encoder=(index.get("text_encoder") or [None, None])[1],
        prompt_length=whole(tokenizer.get("model_max_length")) or None,
        training=training,
        metrics=metrics,
        recipe=recipe.read_text(encoding="utf-8", errors="replace")
        if training and is_file(recipe)
        else None,
        pictures=[
            name
            for name, needed in PICTURES.items()
            if is_file(folder / name) and any(known[report] for report in needed)
        ],
    )


def _measure(
    vae_config: dict[str, Any], unet_config: dict[str, Any], image_shape: list[int] | None
) -> Compression:
    """Return the shapes that the denoiser fixes; without one, those of the training images."""
    with torch.device("meta"):
        vae = getattr(diffusers, vae_config["_class_name"]).from_config(vae_config)
    factor, size = downsampling_factor(vae), unet_config.get("sample_size")
    if size is None:
        height, width = image_size(vae) or (32 * factor, 32 * factor)
    else:
        height, width = (factor * x for x in ([size, size] if isinstance(size, int) else size))
    channels, height, width = image_shape or (image_channels(vae), height, width)
    return measure_compression(vae, (channels, height, width))


def _read_report(path: Path, weights: dict[str, SavedWeights]) -> dict[str, Any]:
    """Read a report; empty if it describes other weights, or a guide that the model lacks."""
    report = _read_json(path)
    for name in {*weights, "guide_unet"}:
        sha256 = weights[name].sha256 if name in weights else None
        if report.get(f"{name}_weights_sha256") != sha256:
            return {}
    return report


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file without its nulls; empty if there is none."""
    values = read_json(path) if is_file(path) else {}
    return {key: value for key, value in values.items() if value is not None}
