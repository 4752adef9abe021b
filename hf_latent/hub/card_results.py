"""A card's `model-index`: every measured figure, under a name that says how it was measured."""

from typing import Any

from huggingface_hub import EvalResult

from hf_latent.hub.card_tables import MANIFOLD
from hf_latent.hub.card_text import number, one_line

GENERATION = ("unconditional-image-generation", "Image generation")  # the Hub has none with classes
RECONSTRUCTION = ("image-to-image", "Reconstruction")


def generation_results(metrics: dict[str, Any], data: tuple[str, str]) -> list[EvalResult]:
    """Return a pipeline's figures.

    Args:
        metrics: of metrics.json.
        data: its id on the Hub, or else its name; and its name.

    Returns:
        A result a figure, its features, guidance, steps and number of images in its name.
    """
    how = [
        _note("guidance {}", metrics.get("guidance_scale"), "g"),
        _note("{} steps", metrics.get("num_inference_steps"), ","),
        _note("{} images", metrics.get("num_images"), ","),
    ]
    named = {
        "label_agreement": ("label_agreement", "label agreement"),
        "train_on_generated_test_on_real_accuracy": (
            "accuracy",
            "accuracy on real images of a classifier trained on these",
        ),
    }
    results = _results(GENERATION, metrics, named, how, data)
    if features := metrics.get("feature_extractor"):  # without them a distance means nothing
        named = {"fd": ("fd", "FD"), "kid": ("kid", "KID")} | {x: (x, x) for x in MANIFOLD}
        how = [f"{features} features", *how]
        results = _results(GENERATION, metrics, named, how, data) + results
    return results + reconstruction_results(metrics, "reconstruction_", data)


def reconstruction_results(
    figures: dict[str, Any], prefix: str, data: tuple[str, str]
) -> list[EvalResult]:
    """Return an autoencoder's figures.

    Args:
        figures: of a report.
        prefix: of the keys there.
        data: as of `generation_results`.

    Returns:
        A result a figure.
    """
    how = [
        "on white" if f"{prefix}alpha_psnr_db" in figures else None,
        _note("{} held-out images", figures.get(f"{prefix}images"), ","),
    ]
    named = {f"{prefix}psnr_db": ("psnr", "PSNR (dB)"), f"{prefix}ssim": ("ssim", "SSIM")}
    results = _results(RECONSTRUCTION, figures, named, how, data)
    if features := figures.get("feature_extractor"):
        how = [f"{features} features", *how]
        results += _results(RECONSTRUCTION, figures, {f"{prefix}fd": ("rfd", "rFD")}, how, data)
    return results


def _note(text: str, value: Any, form: str) -> str | None:
    shown = number(value, form)
    return None if shown is None else text.format(shown)


def _results(
    task: tuple[str, str],
    figures: dict[str, Any],
    named: dict[str, tuple[str, str]],
    notes: list[str | None],
    data: tuple[str, str],
) -> list[EvalResult]:
    how = ", ".join(note for note in notes if note)
    return [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=one_line(data[0]),
            dataset_name=one_line(data[1]),
            metric_type=kind,
            metric_name=f"{label}, {how}" if how else label,
            metric_value=float(f"{figures[key]:.5g}"),
        )
        for key, (kind, label) in named.items()
        if number(figures.get(key), "g") is not None
    ]
