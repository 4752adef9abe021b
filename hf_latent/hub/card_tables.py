"""The tables of a model's card: figures from reports, and none that was not measured."""

from typing import Any

from hf_latent.hub.card_text import duration_text, number, plain
from hf_latent.hub.card_training import data_text, training_text

Rows = list[tuple[str, ...]]
MANIFOLD = ("precision", "recall", "density", "coverage")
SPACES = {"latents": "the model's own latents", "features": "features"}


def reconstruction_rows(figures: dict[str, Any], prefix: str, network: str | None = None) -> Rows:
    """Return what an autoencoder keeps.

    Args:
        figures: of a report.
        prefix: of the keys there, like `reconstruction_`.
        network: that the perceptual distance was measured with.

    Returns:
        Name and value of each figure.
    """
    on_white = " on white" if f"{prefix}alpha_psnr_db" in figures else ""
    named = {
        f"PSNR{on_white}": ("psnr_db", ".2f", " dB"),
        "PSNR on mid-grey": ("grey_psnr_db", ".2f", " dB"),
        "PSNR of alpha": ("alpha_psnr_db", ".2f", " dB"),
        f"SSIM{on_white}": ("ssim", ".4f", ""),
        "SSIM on mid-grey": ("grey_ssim", ".4f", ""),
        "PSNR, without the padding": ("unpadded_psnr_db", ".2f", " dB"),
        "SSIM, without the padding": ("unpadded_ssim", ".4f", ""),
        f"perceptual distance ({plain(network)})": ("perceptual_distance", ".4f", ""),
        "FD of the reconstructions (rFD)": ("fd", ".2f", ""),
        "KL before the fold": ("kl_nats_per_latent_value", ".3f", " nats a latent value"),
    }
    rows: Rows = []
    for label, (key, form, unit) in named.items():
        text = number(figures.get(prefix + key), form)
        if text is not None:
            rows.append((label, text + unit))
    return rows


def latent_rows(figures: dict[str, Any]) -> Rows:
    """Return how near to a standard normal the saved model's latents are, per channel."""
    rows: Rows = []
    for key, label, form in (("mean", "mean", "+.3f"), ("std", "deviation", ".3f")):
        values = figures.get(f"residual_{key}")
        texts = [number(x, form) for x in values] if isinstance(values, list) else []
        if texts and None not in texts:
            rows.append((f"latent {label}, per channel", ", ".join(map(str, texts))))
    return rows


def generation_rows(metrics: dict[str, Any]) -> Rows:
    """Return how close generated images come to real ones.

    Args:
        metrics: of metrics.json.

    Returns:
        Name, value of the generated images and of as many real ones, for each figure.
    """
    floor = number(metrics.get("floor_fd"), ".2f")
    named = {
        "FD" + (f" (with a perfect denoiser: {floor})" if floor else ""): ("fd", "real_fd", ".2f"),
        "KID": ("kid", "real_kid", ".5f"),
        **{name: (name, f"real_{name}", ".3f") for name in MANIFOLD},
        "label agreement": ("label_agreement", "label_agreement_judge_real_accuracy", ".3f"),
        "accuracy on real images of a classifier trained on these": (
            "train_on_generated_test_on_real_accuracy",
            "train_on_real_test_on_real_accuracy",
            ".3f",
        ),
    }
    rows: Rows = []
    for label, (key, real_key, form) in named.items():
        text = number(metrics.get(key), form)
        if text is not None:
            rows.append((label, text, number(metrics.get(real_key), form) or ""))
    spread = [_spread(metrics, prefix) for prefix in ("", "real_")]
    size = number(metrics.get("fd_subset_images"), ",d")
    if spread[0] and size:
        label = f"FD of {len(metrics['fd_subset_values'])} parts of {size}, ± deviation"
        rows.insert(1, (label, spread[0], spread[1] or ""))
    return rows


def _spread(metrics: dict[str, Any], prefix: str) -> str | None:
    """Return the mean and deviation of the FD of disjoint parts."""
    values = metrics.get(f"{prefix}fd_subset_values")
    deviation = number(metrics.get(f"{prefix}fd_subset_std"), ".2f")
    if not isinstance(values, list) or not values or deviation is None:
        return None
    return f"{sum(values) / len(values):.2f} ± {deviation}"


def memorisation_rows(metrics: dict[str, Any]) -> Rows:
    """Return how many copies of training images there are.

    Args:
        metrics: of metrics.json.

    Returns:
        Where they were looked for, how many among the samples, and how many among held-out images.
    """
    rows: Rows = []
    for space, label in SPACES.items():
        copies, held_out = (
            number(metrics.get(f"memorisation_{space}_{key}"), ",")
            for key in ("copies", "held_out_copies")
        )
        if copies is not None and held_out is not None:
            total, others = (
                number(metrics.get(key), ",") for key in ("num_images", "held_out_images")
            )
            rows.append((f"by {label}", f"{copies} of {total}", f"{held_out} of {others}"))
    return rows


def memorisation_verdict(metrics: dict[str, Any]) -> str:
    """Say in words what the memorisation check found."""
    found = metrics.get("memorisation_found")
    if found is None:
        return "There are too few images to tell."
    if found:
        return "**The model copies training images.**"
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
    if number(training.get("encode_seconds"), "g") and training["encode_seconds"] > 0:
        rows.append(("encoding the images, before that", duration_text(training["encode_seconds"])))
    if memory := number(training.get("peak_memory_mb"), ",.0f"):
        rows.append(("peak memory of a process", f"{memory} MB"))
    own = {
        key.removeprefix("autoencoder_"): value
        for key, value in training.items()
        if key.startswith("autoencoder_")
    }
    for label, told in (
        ("the autoencoder's own training", training_text(own)),
        ("its data", data_text(own)),
    ):
        if told:
            rows.append((label, told.rstrip(".")))
    count = number(own.get("held_out_images"), ",")
    for label, value in reconstruction_rows(own, "held_out_", own.get("perceptual_network")):
        rows.append((f"its {label}, {count} held-out images", value))
    return rows
