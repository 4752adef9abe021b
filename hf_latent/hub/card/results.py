"""The measured figures of a card: one table says how each is written, and what the metadata say."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from hf_latent.hub.card.facts import HELD_OUT, ModelFacts, hub_id
from hf_latent.hub.card.text import interval_text, number, one_line

GENERATION = ("unconditional-image-generation", "Image generation")  # the Hub has none with classes
RECONSTRUCTION = ("image-to-image", "Reconstruction")


class Metric(NamedTuple):
    """How a figure of a report is told. Words in braces are filled in by `_read`.

    Attributes:
        key: of the report, perhaps after a prefix like `held_out_`.
        kind: the metric's type in the metadata.
        form: how its value is written, as of `format`.
        name: what the metadata call it, with how it was measured. A distance between features means
            nothing without the network that gave them: if `{features}` is not known, the metadata
            leave it out.
        label: what a table calls it.
        unit: what follows the number in a table.
        real: the key of the same figure of real images.
    """

    key: str
    kind: str
    form: str
    name: str
    label: str = ""
    unit: str = ""
    real: str = ""


_TASKS = {"generated": GENERATION, "copied": GENERATION}  # the other groups: RECONSTRUCTION
_HOW = "{features}{sampling}{images}"
_PARTS = "FD of {parts} parts of {part_images} images{features}{sampling}"
_FLOOR = "FD with a perfect denoiser"
_ACCURACY = "accuracy on real images of a classifier trained on these"
_COPIES = "copies of {compared}training images among"
_LATENTS, _FEATURES = "by the model's own latents", "by features"
_UNPADDED, _PERCEPTUAL = "without the padding", "perceptual distance{network}"
_KL, _NATS = "KL before the fold", " nats a latent value"

GENERATED = (
    Metric("fd", "fd", ".2f", f"FD{_HOW}", "FD", real="real_fd"),
    Metric("floor_fd", "fd", ".2f", _FLOOR + "{features}{images}", _FLOOR),
    Metric("fd_subset_mean", "fd", ".2f", f"mean {_PARTS}", real="real_fd_subset_mean"),
    Metric(
        key="fd_subset_std",
        kind="fd_deviation",
        form=".2f",
        name=f"deviation of the {_PARTS}",
        real="real_fd_subset_std",
    ),
    Metric("kid", "kid", ".5f", f"KID{_HOW}", "KID", real="real_kid"),
    *(
        Metric(key, key, ".3f", key + _HOW, key, real=f"real_{key}")
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
        ("unpadded_psnr_db", "psnr", ".2f", f"PSNR (dB), {_UNPADDED}", f"PSNR, {_UNPADDED}", " dB"),
        ("unpadded_ssim", "ssim", ".4f", f"SSIM, {_UNPADDED}", f"SSIM, {_UNPADDED}", ""),
        ("perceptual_distance", "perceptual_distance", ".4f", _PERCEPTUAL, _PERCEPTUAL, ""),
        ("fd", "rfd", ".2f", "rFD{features}", "FD of the reconstructions (rFD)", ""),
        ("kl_nats_per_latent_value", "kl", ".3f", f"{_KL} (nats a latent value)", _KL, _NATS),
    )
)


@dataclass(frozen=True)
class Figure:
    """A figure that was measured.

    Attributes:
        value: finite.
        kind: the metric's type in the metadata.
        name: what the metadata call it; None: they leave it out.
        label: what a table calls it.
        text: the value and its unit, as a table shows it.
        real: the same of real images; empty if that was not measured.
    """

    value: float
    kind: str
    name: str | None
    label: str
    text: str
    real: str = ""


Figures = dict[str, Figure]


def model_figures(facts: ModelFacts) -> dict[str, Figures]:
    """Return the measured figures of a model.

    Args:
        facts: of its folder.

    Returns:
        By group, and there by key: `generated`, how close its images come to real ones; `copied`,
        how many copies of training images there are; `kept`, what the autoencoder keeps of an
        image; `latents`, how near to a standard normal each channel of an autoencoder's latents is.
    """
    measured, held_out = facts.measured, facts.held_out
    if facts.kind == "pipeline":
        kept = reconstruction_figures(measured, "reconstruction_", held_out)
        return {**generation_figures(measured, facts.guide, held_out), "kept": kept}
    kept = reconstruction_figures(measured, facts.prefix, held_out)
    if facts.prefix == "test_":  # a release keeps the training's KL, which has no prefix
        kept |= _read(KEPT[-1:], measured, images="")
    return {"kept": kept, "latents": latent_figures(measured)}


def generation_figures(
    metrics: dict[str, Any], guide: str | None = None, held_out: str = HELD_OUT
) -> dict[str, Figures]:
    """Return the figures of generated images.

    Args:
        metrics: of metrics.json.
        guide: what guided the samples, if it was another denoiser.
        held_out: what to call the images that copies were looked for among, besides the samples.

    Returns:
        `generated` and `copied`, as of `model_figures`.
    """
    scale, steps = (
        number(metrics.get(key), form)
        for key, form in (("guidance_scale", "g"), ("num_inference_steps", ","))
    )
    guidance, between = "autoguidance" if guide else "guidance", interval_text(metrics)
    network = metrics.get("feature_extractor")
    images, others = (number(metrics.get(key), ",") for key in ("num_images", "held_out_images"))
    compared = number(metrics.get("train_images"), ",")
    known = metrics | _parts(metrics, "") | _parts(metrics, "real_")
    words = {
        "features": f", {network} features" if network else "",
        "sampling": (f", {guidance} {scale}{between}" if scale else "")
        + (f", guide {guide}" if guide else "")
        + (f", {steps} steps" if steps else ""),
        "images": f", {images} images" if images else "",
        "parts": known["fd_subset_mean"] is not None and len(metrics["fd_subset_values"]),
        "part_images": number(metrics.get("fd_subset_images"), ","),
        "compared": f"{compared} " if compared else "",
        "samples": f"{images} samples" if images else "samples",
        "of_samples": f" of {images}" if images else "",
        "others": f"{others} {held_out}" if others else held_out,
        "of_others": f" of {others}" if others else "",
    }
    copied = _read(COPIED, metrics, **words)
    for space in ("latents", "features"):  # samples and others say something only side by side
        pair = [f"memorisation_{space}_{kind}" for kind in ("copies", "held_out_copies")]
        if not all(key in copied for key in pair):
            for key in pair:
                copied.pop(key, None)
    return {"generated": _read(GENERATED, known, **words), "copied": copied}


def reconstruction_figures(
    report: dict[str, Any], prefix: str, held_out: str = HELD_OUT
) -> Figures:
    """Return what an autoencoder keeps of images.

    Args:
        report: flat figures.
        prefix: of the keys there, like `reconstruction_`.
        held_out: what to call the images.

    Returns:
        Those that were measured, by their keys without the prefix.
    """
    own = {k.removeprefix(prefix): value for k, value in report.items() if k.startswith(prefix)}
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


def latent_figures(report: dict[str, Any]) -> Figures:
    """Return how near to a standard normal the saved model's latents are.

    Args:
        report: flat figures, of each channel a list.

    Returns:
        A figure a channel, named `latent_mean 1` and so on; only if that of each channel is known.
    """
    found = {}
    for key, kind, form in (("mean", "latent_mean", "+.3f"), ("std", "latent_deviation", ".3f")):
        values: Any = report.get(f"residual_{key}")
        texts = [number(x, form) or "" for x in values] if isinstance(values, list) else []
        if "" in texts:
            continue
        label = kind.replace("_", " ")
        for i, text in enumerate(texts, 1):
            name = f"{label}, channel {i} of {len(texts)}"
            found[f"{kind} {i}"] = Figure(values[i - 1], kind, name, label, text)
    return found


def eval_results(facts: ModelFacts, figures: dict[str, Figures]) -> list[EvalResult]:
    """Return a card's `model-index`, a result a figure.

    Args:
        facts: of the model's folder.
        figures: as of `model_figures`.
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
        for task_type, task_name in [_TASKS.get(group, RECONSTRUCTION)]
        for figure in found.values()
        if figure.name
    ]


def _read(table: Iterable[Metric], report: dict[str, Any], **words: Any) -> Figures:
    """Return those figures of a table that a report has."""
    found = {}
    for metric in table:
        value: Any = report.get(metric.key)
        text = number(value, metric.form)
        if text is None:
            continue
        told = words.get("features") or "{features}" not in metric.name
        found[metric.key] = Figure(
            value=value,
            kind=metric.kind,
            name=metric.name.format(**words) if told else None,
            label=metric.label.format(**words),
            text=text + metric.unit.format(**words),
            real=number(report.get(metric.real), metric.form) or "",
        )
    return found


def _parts(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return mean and deviation of the FD of disjoint parts; None if one is missing."""
    values: Any = metrics.get(f"{prefix}fd_subset_values")
    deviation, size = metrics.get(f"{prefix}fd_subset_std"), metrics.get("fd_subset_images")
    mean = None
    if isinstance(values, list) and values and None not in [number(x, "g") for x in values]:
        mean = sum(values) / len(values)
    if mean is None or number(deviation, "g") is None or not number(size, ",d"):
        mean = deviation = None
    return {f"{prefix}fd_subset_mean": mean, f"{prefix}fd_subset_std": deviation}
