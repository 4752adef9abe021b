"""The tables of a model's card: figures from reports, and none that was not measured."""

from typing import Any

from hf_latent.hub.card.figures import (
    HELD_OUT,
    Figure,
    generation_figures,
    latent_figures,
    memorisation_figures,
    reconstruction_figures,
)
from hf_latent.hub.card.origin import autoencoder_report, origin_text
from hf_latent.hub.card.text import duration_text, number, plain
from hf_latent.hub.card.training import training_text

Rows = list[tuple[str, ...]]
_IN_OTHER_ROWS = ("floor_fd", "fd_subset_mean", "fd_subset_std")


def figure_rows(figures: list[Figure]) -> Rows:
    """Return name and value of each figure."""
    return [(str(plain(x.label)), x.text) for x in figures]


def latent_rows(report: dict[str, Any]) -> Rows:
    """Return how near to a standard normal the saved model's latents are, per channel."""
    return [
        (label, ", ".join(x.text for x in channels))
        for label, channels in latent_figures(report).items()
    ]


def generation_rows(metrics: dict[str, Any]) -> Rows:
    """Return how close generated images come to real ones.

    Args:
        metrics: of metrics.json.

    Returns:
        Name, value of the generated images and of as many real ones, for each figure; where the
        real ones are not as many, it is said.
    """
    figures = generation_figures(metrics)
    floor, mean, deviation = (figures.get(key) for key in _IN_OTHER_ROWS)
    rows: Rows = []
    for key, figure in figures.items():
        label, real = figure.label, number(figure.real, figure.form) or ""
        if key == "fd" and floor:
            label += f" (with a perfect denoiser: {floor.text})"
        if key == "label_agreement" and real:
            real += _other_number(metrics)
        if key == "fd_subset_mean" and mean and deviation:
            size = number(metrics["fd_subset_images"], ",d")
            label = f"FD of {len(metrics['fd_subset_values'])} parts of {size}, ± deviation"
            spread = number(deviation.real, ".2f")
            real = f"{real} ± {spread}" if real and spread else ""
            rows.append((label, f"{mean.text} ± {deviation.text}", real))
        elif key not in _IN_OTHER_ROWS or (key == "floor_fd" and "fd" not in figures):
            rows.append((label, figure.text, real))
    return rows


def _other_number(metrics: dict[str, Any]) -> str:
    """Say on how many real images label agreement was measured, unless on as many as generated."""
    count = metrics.get("label_agreement_judge_real_images", metrics.get("held_out_images"))
    shown = number(count, ",d")
    return "" if shown is None or count == metrics.get("num_images") else f" (of {shown})"


def memorisation_rows(metrics: dict[str, Any]) -> Rows:
    """Return how many copies of training images there are.

    Args:
        metrics: of metrics.json.

    Returns:
        Where they were looked for, how many among the samples, and how many among held-out images.
    """
    return [(x.label, x.text, other.text) for x, other in memorisation_figures(metrics).values()]


def memorisation_verdict(metrics: dict[str, Any], held_out: str = HELD_OUT) -> str:
    """Say in words what the memorisation check found.

    Args:
        metrics: of metrics.json.
        held_out: what the images are called that the samples were compared with; only held-out
            ones tell what chance explains.
    """
    found = metrics.get("memorisation_found")
    if found is None:
        return "There are too few images to tell."
    if found:
        return "**The model copies training images.**"
    if held_out != HELD_OUT:
        return f"There are no more of them than among the {held_out}."
    return "So it copies no more than chance explains."


def denoiser_training_rows(training: dict[str, Any]) -> Rows:
    """Return what else a denoiser's training tells.

    Args:
        training: of training.json; `autoencoder_...` are figures of its autoencoder's training.

    Returns:
        Name and value of each figure.
    """
    rows: Rows = []
    if loss := number(training.get("held_out_loss"), ".4f"):
        images = number(training.get("held_out_images"), ",")
        of = f" of {images} held-out images" if images else ""
        rows.append((f"loss{of}, over all noise levels", loss))
    if sigma_rel := number(training.get("ema_sigma_rel"), "g"):
        rows.append(("weights: power-function average, of relative length", sigma_rel))
    if number(training.get("encode_seconds"), "g") and training["encode_seconds"] > 0:
        rows.append(("encoding the images, before that", duration_text(training["encode_seconds"])))
    if memory := number(training.get("peak_memory_mb"), ",.0f"):
        rows.append(("peak memory of a process", f"{memory} MB"))
    own = autoencoder_report(training)
    for label, told in (
        ("the autoencoder's own training", training_text(own)),
        ("its data", origin_text(own)),
    ):
        if told:
            rows.append((label, told.rstrip(".")))
    count = number(own.get("held_out_images"), ",")
    kept = reconstruction_figures(own, "held_out_", own.get("perceptual_network"))
    of = f", {count} {HELD_OUT}" if count else ""
    rows += [(f"its {label}{of}", value) for label, value in figure_rows(kept)]
    return rows
