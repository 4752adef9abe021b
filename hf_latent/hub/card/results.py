"""The measured figures of a card: their names, formats and units, in tables and in metadata."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from hf_latent.hub.card.facts import HELD_OUT, ModelFacts, hub_id, without_prefix
from hf_latent.hub.card.text import interval_text, number, one_line

# The Hub has no task of image generation with classes.
GENERATION = ("unconditional-image-generation", "Image generation")
FROM_PROMPTS = ("text-to-image", "Image generation")
RECONSTRUCTION = ("image-to-image", "Reconstruction")


class Metric(NamedTuple):
    """How a card shows a figure. `_read` fills in words in braces.

    Attributes:
        key: in the report, without a prefix like `held_out_`.
        kind: the metric's type in the metadata.
        form: of the value, as in `format`.
        name: in the metadata, with the way of measuring. If it needs `{features}`, and the feature
            network is not known, the metadata omit the figure: it could not be compared.
        label: in a table.
        unit: after the number in a table.
        real: key of the same figure of real images; by default `real_` and the key.
    """

    key: str
    kind: str
    form: str
    name: str
    label: str = ""
    unit: str = ""
    real: str = ""


GENERATION_GROUPS = ("generated", "copied")  # the other groups are of the reconstruction
_HOW = "{features}{sampling}{images}"
_PARTS = "FD of {parts} parts of {part_images} images{features}{sampling}"
_FLOOR = "FD with a perfect denoiser"
_ACCURACY = "accuracy on real images of a classifier trained on these"
_FOUND = " of its own caption among {captions}"
_COPIES = "copies of {compared}training images among"
_LATENTS, _FEATURES = "by the model's own latents", "by features"
_UNPADDED, _PERCEPTUAL = "without the padding", "perceptual distance{network}"
_KL, _NATS = "KL before the fold", " nats a latent value"

GENERATED = (
    Metric("fd", "fd", ".2f", f"FD{_HOW}", "FD"),
    Metric("floor_fd", "fd", ".2f", _FLOOR + "{features}{images}", _FLOOR),
    Metric("fd_subset_mean", "fd", ".2f", f"mean {_PARTS}"),
    Metric("fd_subset_std", "fd_deviation", ".2f", f"deviation of the {_PARTS}"),
    Metric("kid", "kid", ".5f", f"KID{_HOW}", "KID"),
    *(
        Metric(key, key, ".3f", key + _HOW, key)
        for key in ("precision", "recall", "density", "coverage")
    ),
    Metric(
        key="label_agreement",
        kind="label_agreement",
        form=".3f",
        name="label agreement{sampling}{images}",
        label="label agreement",
        real="label_agreement_judge_real_accuracy",
    ),
    Metric(
        key="train_on_generated_test_on_real_accuracy",
        kind="accuracy",
        form=".3f",
        name=_ACCURACY + "{sampling}{images}",
        label=_ACCURACY,
        real="train_on_real_test_on_real_accuracy",
    ),
    *(
        Metric(f"retrieval_{key}", key, form, f"{name}{_FOUND}{_HOW}", name + _FOUND)
        for key, name, form in (
            ("recall_at_1", "recall at 1", ".3f"),
            ("recall_at_5", "recall at 5", ".3f"),
            ("median_rank", "median rank", "g"),
        )
    ),
    Metric("clip_score", "clip_score", ".2f", "CLIP score{clip}{sampling}{images}", "CLIP score"),
)
COPIED = tuple(
    Metric(f"memorisation_{key}", "copies", ",d", f"{_COPIES} {name}", label, unit)
    for key, name, label, unit in (
        ("latents_copies", f"{{samples}}, {_LATENTS}{{sampling}}", _LATENTS, "{of_samples}"),
        ("latents_held_out_copies", f"{{others}}, {_LATENTS}", _LATENTS, "{of_others}"),
        ("features_copies", "{samples}{features}{sampling}", _FEATURES, "{of_samples}"),
        ("features_held_out_copies", "{others}{features}", _FEATURES, "{of_others}"),
    )
)
KEPT = tuple(
    Metric(key, kind, form, name + "{images}", label, unit)
    for key, kind, form, name, label, unit in (
        ("psnr_db", "psnr", ".2f", "PSNR (dB){and_white}", "PSNR{white}", " dB"),
        ("grey_psnr_db", "psnr", ".2f", "PSNR (dB), on mid-grey", "PSNR on mid-grey", " dB"),
        ("alpha_psnr_db", "psnr", ".2f", "PSNR (dB), of alpha", "PSNR of alpha", " dB"),
        ("ssim", "ssim", ".4f", "SSIM{and_white}", "SSIM{white}", ""),
        ("grey_ssim", "ssim", ".4f", "SSIM, on mid-grey", "SSIM on mid-grey", ""),
        ("luma_r2", "r2", ".3f", "R2 of luma", "R2 of luma (brightness)", ""),
        ("chroma_r2", "r2", ".3f", "R2 of chroma", "R2 of chroma (colours)", ""),
        ("unpadded_psnr_db", "psnr", ".2f", f"PSNR (dB), {_UNPADDED}", f"PSNR, {_UNPADDED}", " dB"),
        ("unpadded_ssim", "ssim", ".4f", f"SSIM, {_UNPADDED}", f"SSIM, {_UNPADDED}", ""),
        ("perceptual_distance", "perceptual_distance", ".4f", _PERCEPTUAL, _PERCEPTUAL, ""),
        ("fd", "rfd", ".2f", "rFD{features}", "FD of the reconstructions (rFD)", ""),
        ("kl_nats_per_latent_value", "kl", ".3f", f"{_KL} (nats a latent value)", _KL, _NATS),
    )
)


@dataclass(frozen=True)
class Figure:
    """A measured figure.

    Attributes:
        value: finite.
        kind: the metric's type in the metadata.
        name: in the metadata; None: they omit it.
        label: in a table.
        text: value and unit in a table.
        real: value of real images in a table; empty if it was not measured.
        floor: value with a perfect denoiser in a table; empty if it was not measured.
        teacher: value of the teacher in a table; empty if there is none, or it was not measured.
    """

    value: float
    kind: str
    name: str | None
    label: str
    text: str
    real: str = ""
    floor: str = ""
    teacher: str = ""


Figures = dict[str, Figure]


def model_figures(facts: ModelFacts) -> dict[str, Figures]:
    """Return the measured figures of a model.

    Returns:
        By group, then by key: `generated`, how close its images come to real ones; `copied`, the
        number of copies of training images; `kept`, what the autoencoder keeps of an image;
        `latents`, mean and deviation of each channel of an autoencoder's latents.
    """
    measured, held_out = facts.measured, facts.held_out
    if facts.kind == "pipeline":
        kept = reconstruction_figures(measured, "reconstruction_", held_out)
        generation = _generation_figures(measured, facts.teacher, facts.guide, held_out)
        return generation | {"kept": kept}
    kept = reconstruction_figures(measured, facts.prefix, held_out)
    if facts.prefix == "test_":  # the KL of a released autoencoder has no prefix
        kept |= _read(KEPT[-1:], measured, images="")
    return {"kept": kept, "latents": _latent_figures(measured)}


def _generation_figures(
    metrics: dict[str, Any], teacher: dict[str, Any], guide: str | None, held_out: str
) -> dict[str, Figures]:
    """Return `generated` and `copied` of `model_figures`."""

    def shown(key: str, form: str = ",") -> str | None:
        return number(metrics.get(key), form)

    scale, steps = shown("guidance_scale", "g"), shown("num_inference_steps")
    guidance, between = "autoguidance" if guide else "guidance", interval_text(metrics)
    network = metrics.get("feature_extractor")
    images, others, compared = map(shown, ("num_images", "held_out_images", "train_images"))
    known = metrics | {f"teacher_{key}": value for key, value in teacher.items()}
    for prefix in ("", "floor_", "real_", "teacher_"):
        known |= _subset_fd(known, prefix)
    words = {
        "features": f", {network} features" if network else "",
        "sampling": (f", {guidance} {scale}{between}" if scale else "")
        + (f", guide {guide}" if guide else "")
        + (f", {steps} steps" if steps else ""),
        "images": f", {images} images" if images else "",
        "captions": shown("retrieval_num_captions"),
        "clip": f" ({metrics['clip_model']})" if metrics.get("clip_model") else "",
        "parts": known["fd_subset_mean"] is not None and len(metrics["fd_subset_values"]),
        "part_images": shown("fd_subset_images"),
        "compared": f"{compared} " if compared else "",
        "samples": f"{images} samples" if images else "samples",
        "of_samples": f" of {images}" if images else "",
        "others": f"{others} {held_out}" if others else held_out,
        "of_others": f" of {others}" if others else "",
    }
    copied = _read(COPIED, metrics, **words)
    for space in ("latents", "features"):  # samples mean something only beside held-out images
        pair = [f"memorisation_{space}_{kind}" for kind in ("copies", "held_out_copies")]
        if not all(key in copied for key in pair):
            for key in pair:
                copied.pop(key, None)
    return {"generated": _read(GENERATED, known, **words), "copied": copied}


def reconstruction_figures(
    report: dict[str, Any], prefix: str, held_out: str = HELD_OUT
) -> Figures:
    """Return the figures of what an autoencoder keeps of images.

    Args:
        report: flat figures.
        prefix: of their keys, like `reconstruction_`.
        held_out: name of the images.

    Returns:
        The measured ones, by their keys without the prefix.
    """
    own = without_prefix(report, prefix)
    images = number(own.get("images"), ",")
    seen = "on white" if "alpha_psnr_db" in own else ""
    features, network = report.get("feature_extractor"), report.get("perceptual_network")
    return _read(
        KEPT,
        own,
        images=f", {images} {held_out}" if images else "",
        white=f" {seen}" if seen else "",
        and_white=f", {seen}" if seen else "",
        features=f", {features} features" if features else "",
        network=f" ({network})" if network else "",
    )


def _latent_figures(report: dict[str, Any]) -> Figures:
    """Return mean and deviation of each latent channel, if all channels have them."""
    found = {}
    for key, kind, form in (("mean", "latent_mean", "+.3f"), ("std", "latent_deviation", ".3f")):
        values: Any = report.get(f"residual_{key}")
        texts = [number(x, form) or "" for x in values] if isinstance(values, list) else []
        if "" in texts:
            continue
        label = kind.replace("_", " ")
        for i, text in enumerate(texts):
            found[f"{kind} {i}"] = Figure(values[i], kind, f"{label}, channel {i}", label, text)
    return found


def task_of(facts: ModelFacts, group: str) -> tuple[str, str]:
    """Return the Hub's task, and its name, of a group of figures of `model_figures`."""
    if group not in GENERATION_GROUPS:
        return RECONSTRUCTION
    return FROM_PROMPTS if facts.text_encoder else GENERATION


def eval_results(facts: ModelFacts, figures: dict[str, Figures]) -> list[EvalResult]:
    """Return the results of a card's `model-index`, one for each figure that has a name.

    Args:
        facts: of the model's folder.
        figures: of `model_figures`.
    """
    data = facts.measured.get("data")
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=one_line(hub_id(data) or data),
            dataset_name=one_line(facts.measured.get("data_name", data)),
            metric_type=figure.kind,
            metric_name=one_line(figure.name),
            metric_value=(
                figure.value if isinstance(figure.value, int) else float(f"{figure.value:.5g}")
            ),
        )
        for group, found in figures.items()
        for task_type, task_name in [task_of(facts, group)]
        for figure in found.values()
        if figure.name
    ]


def _read(table: Iterable[Metric], report: dict[str, Any], **words: Any) -> Figures:
    """Return the figures of a table that a report has."""
    found = {}
    for metric in table:
        value: Any = report.get(metric.key)
        text = number(value, metric.form)
        if text is None:
            continue
        is_named = words.get("features") or "{features}" not in metric.name
        found[metric.key] = Figure(
            value=value,
            kind=metric.kind,
            name=metric.name.format(**words) if is_named else None,
            label=metric.label.format(**words),
            text=text + metric.unit.format(**words),
            real=number(report.get(metric.real or f"real_{metric.key}"), metric.form) or "",
            floor=number(report.get(f"floor_{metric.key}"), metric.form) or "",
            teacher=number(report.get(f"teacher_{metric.key}"), metric.form) or "",
        )
    return found


def _subset_fd(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return mean and deviation of the FD of disjoint parts; None if a value is missing."""
    values: Any = metrics.get(f"{prefix}fd_subset_values")
    deviation, size = metrics.get(f"{prefix}fd_subset_std"), metrics.get("fd_subset_images")
    mean = None
    if number(deviation, "g") and number(size, ",d") and isinstance(values, list) and values:
        mean = sum(values) / len(values) if all(number(x, "g") for x in values) else None
    return {
        f"{prefix}fd_subset_mean": mean,
        f"{prefix}fd_subset_std": None if mean is None else deviation,
    }
