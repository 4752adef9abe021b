"""The measured figures of a model: the tables of its card and its metadata are made of these."""

from dataclasses import dataclass
from typing import Any

from hf_latent.hub.card.text import number, one_line

MANIFOLD = ("precision", "recall", "density", "coverage")
SPACES = ("latents", "features")
HELD_OUT = "held-out images"


@dataclass(frozen=True)
class Figure:
    """A figure that was measured.

    Attributes:
        value: finite.
        form: how a table writes it, as of `format`.
        unit: after it in a table.
        label: what a table calls it, in text that is no Markdown yet.
        kind: the metric's type in the metadata.
        name: what the metadata call it.
        how: how it was measured, for the metadata.
        network: what gave the features, for a distance between features; without it the distance
            means nothing, and is no metadata.
        needs_network: whether it is such a distance.
        real: the same of real images; None where that was not measured.
    """

    value: float
    form: str
    unit: str
    label: str
    kind: str
    name: str
    how: tuple[str, ...] = ()
    network: str | None = None
    needs_network: bool = False
    real: Any = None

    @property
    def text(self) -> str:
        """The figure as a table shows it."""
        return format(self.value, self.form) + self.unit


def reconstruction_figures(
    report: dict[str, Any], prefix: str, network: Any = None, held_out: str = HELD_OUT
) -> list[Figure]:
    """Return what an autoencoder keeps.

    Args:
        report: flat figures.
        prefix: of the keys there, like `reconstruction_`.
        network: that the perceptual distance was measured with.
        held_out: what to call the images.

    Returns:
        Those that were measured.
    """
    on_white = "on white" if f"{prefix}alpha_psnr_db" in report else ""
    grey, unpadded = "on mid-grey", "without the padding"
    psnr, ssim = ("psnr", "PSNR (dB)"), ("ssim", "SSIM")
    distance = f"perceptual distance ({network})" if network else "perceptual distance"
    kl = "KL before the fold"
    rows = (
        ("psnr_db", f"PSNR {on_white}".strip(), ".2f", " dB", *psnr, on_white),
        ("grey_psnr_db", f"PSNR {grey}", ".2f", " dB", *psnr, grey),
        ("alpha_psnr_db", "PSNR of alpha", ".2f", " dB", *psnr, "of alpha"),
        ("ssim", f"SSIM {on_white}".strip(), ".4f", "", *ssim, on_white),
        ("grey_ssim", f"SSIM {grey}", ".4f", "", *ssim, grey),
        ("unpadded_psnr_db", f"PSNR, {unpadded}", ".2f", " dB", *psnr, unpadded),
        ("unpadded_ssim", f"SSIM, {unpadded}", ".4f", "", *ssim, unpadded),
        ("perceptual_distance", distance, ".4f", "", "perceptual_distance", distance, ""),
        ("fd", "FD of the reconstructions (rFD)", ".2f", "", "rfd", "rFD", ""),
        (
            *("kl_nats_per_latent_value", kl, ".3f", " nats a latent value", "kl"),
            *(f"{kl} (nats a latent value)", ""),
        ),
    )
    images = _note(f"{{}} {held_out}", report.get(f"{prefix}images"), ",")
    return [
        Figure(
            *(report[prefix + key], form, unit, label, kind, name, (*_some(view), *images)),
            network=report.get("feature_extractor") if key == "fd" else None,
            needs_network=key == "fd",
        )
        for key, label, form, unit, kind, name, view in rows
        if number(report.get(prefix + key), form) is not None
    ]


def generation_figures(metrics: dict[str, Any]) -> dict[str, Figure]:
    """Return how close generated images come to real ones.

    Args:
        metrics: of metrics.json.

    Returns:
        Those that were measured, by their keys there; `fd_subset_mean` is the mean of
        `fd_subset_values`.
    """
    known = metrics | _parts(metrics, "") | _parts(metrics, "real_")
    images = _note("{} images", metrics.get("num_images"), ",")
    sampling = _sampling(metrics)
    how = (*sampling, *images)
    size = number(metrics.get("fd_subset_images"), ",")
    part = f"of {known['parts']} parts of {size} images"
    spread = f"deviation of the FD {part}"
    accuracy = "accuracy on real images of a classifier trained on these"
    judge, on_real = "label_agreement_judge_real_accuracy", "train_on_real_test_on_real_accuracy"
    distances = {
        "fd": ("FD", ".2f", "fd", "real_fd", how),
        "floor_fd": ("FD with a perfect denoiser", ".2f", "fd", "", images),
        "fd_subset_mean": (f"mean FD {part}", ".2f", "fd", "real_fd_subset_mean", sampling),
        "fd_subset_std": (spread, ".2f", "fd_deviation", "real_fd_subset_std", sampling),
        "kid": ("KID", ".5f", "kid", "real_kid", how),
        **{x: (x, ".3f", x, f"real_{x}", how) for x in MANIFOLD},
    }
    judged = {
        "label_agreement": ("label agreement", ".3f", "label_agreement", judge, how),
        "train_on_generated_test_on_real_accuracy": (accuracy, ".3f", "accuracy", on_real, how),
    }
    return {
        key: Figure(
            *(known[key], form, "", name, kind, name, notes),
            network=metrics.get("feature_extractor") if key in distances else None,
            needs_network=key in distances,
            real=known.get(real),
        )
        for key, (name, form, kind, real, notes) in (distances | judged).items()
        if number(known.get(key), form) is not None
    }


def memorisation_figures(
    metrics: dict[str, Any], held_out: str = HELD_OUT
) -> dict[str, tuple[Figure, Figure]]:
    """Return how many copies of training images there are.

    Args:
        metrics: of metrics.json.
        held_out: what to call the images that the samples are compared with.

    Returns:
        By the space where they were looked for: among samples, and among held-out images.
    """
    compared = number(metrics.get("train_images"), ",")
    copies = f"copies of {compared} training images" if compared else "copies of training images"
    groups = (
        ("copies", "num_images", _sampling(metrics), "samples"),
        ("held_out_copies", "held_out_images", (), held_out),
    )
    found = {}
    for space in SPACES:
        pair = []
        for key, total, how, noun in groups:
            value: Any = metrics.get(f"memorisation_{space}_{key}")
            form = ",d"
            if number(value, form) is None:
                break
            count = number(metrics.get(total), ",")
            label = f"{copies} among {f'{count} ' if count else ''}{noun}"
            seen = "by features" if space == "features" else "by the model's own latents"
            pair.append(
                Figure(
                    value=value,
                    form=form,
                    unit=f" of {count}" if count else "",
                    label=seen,
                    kind="copies",
                    name=label,
                    how=how if space == "features" else (seen, *how),
                    network=metrics.get("feature_extractor") if space == "features" else None,
                    needs_network=space == "features",
                )
            )
        if len(pair) == len(groups):
            found[space] = (pair[0], pair[1])
    return found


def latent_figures(report: dict[str, Any]) -> dict[str, list[Figure]]:
    """Return how near to a standard normal the saved model's latents are, per channel.

    Args:
        report: flat figures, of each channel a list.

    Returns:
        A figure a channel, by their label; only where that of each channel is known.
    """
    found = {}
    for key, label, form in (("mean", "mean", "+.3f"), ("std", "deviation", ".3f")):
        values = report.get(f"residual_{key}")
        if not isinstance(values, list) or not values:
            continue
        if None in [number(x, form) for x in values]:
            continue
        name = f"latent {label}, channel"
        found[f"latent {label}, per channel"] = [
            Figure(x, form, "", name, f"latent_{label}", f"{name} {i} of {len(values)}")
            for i, x in enumerate(values, 1)
        ]
    return found


def guide_name(metrics: dict[str, Any]) -> str | None:
    """Return what a report calls the guide of its samples' autoguidance.

    Args:
        metrics: of metrics.json.

    Returns:
        A name, in text that is no Markdown yet; None where the guidance was another, or off.
    """
    if metrics.get("guide_unet_weights_sha256") is None or metrics.get("guidance_scale") == 1:
        return None
    return one_line(metrics.get("guide") or "guide_unet")


def interval_text(metrics: dict[str, Any]) -> str:
    """Return between which noise levels the samples of a report were guided; empty: at all."""
    interval = metrics.get("guidance_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        return ""
    low, high = (number(x, "g") for x in interval)
    return f" between the noise levels {low} and {high}" if low and high else ""


def _sampling(metrics: dict[str, Any]) -> tuple[str, ...]:
    guide = guide_name(metrics)
    kind = "guidance" if guide is None else "autoguidance"
    return (
        *_note(f"{kind} {{}}{interval_text(metrics)}", metrics.get("guidance_scale"), "g"),
        *((f"guide {guide}",) if guide else ()),
        *_note("{} steps", metrics.get("num_inference_steps"), ","),
    )


def _parts(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return mean and deviation of the FD of disjoint parts; nothing where one is missing."""
    values: Any = metrics.get(f"{prefix}fd_subset_values")
    deviation, size = metrics.get(f"{prefix}fd_subset_std"), metrics.get("fd_subset_images")
    mean, parts = f"{prefix}fd_subset_mean", f"{prefix}parts"
    known = isinstance(values, list) and values and None not in [number(x, "g") for x in values]
    if not known or number(deviation, "g") is None or not number(size, ",d"):
        return {mean: None, f"{prefix}fd_subset_std": None, parts: None}
    return {mean: sum(values) / len(values), parts: len(values)}


def _note(text: str, value: Any, form: str) -> tuple[str, ...]:
    shown = number(value, form)
    return () if shown is None else (text.format(shown),)


def _some(text: str) -> tuple[str, ...]:
    return (text,) if text else ()
