"""What images a model has seen, as far as reports tell, and what a card may claim of others."""

from typing import Any

from hf_latent.hub.card.figures import HELD_OUT
from hf_latent.hub.card.text import counted, number, plain
from hf_latent.hub.card.training import data_text

_FINGERPRINT = "validation_fingerprint"
EVALUATED = "images held out in the evaluation"


def autoencoder_report(training: dict[str, Any]) -> dict[str, Any]:
    """Return what a pipeline's training.json carries along of its autoencoder's training."""
    prefix = "autoencoder_"
    return {k.removeprefix(prefix): value for k, value in training.items() if k.startswith(prefix)}


def start_text(training: dict[str, Any]) -> str | None:
    """Say what a training started from, of an autoencoder or a denoiser.

    Args:
        training: figures of the training.

    Returns:
        A part of a sentence in Markdown; None where it started anew.
    """
    name = plain(training.get("pretrained_vae") or training.get("pretrained_unet"))
    return name and f"fine-tuned from {name}, whose own training images are not known"


def origin_text(training: dict[str, Any]) -> str | None:
    """Say what a model was trained on; nothing is claimed of what it started from.

    Args:
        training: figures of its training.

    Returns:
        Sentences in Markdown; None where nothing is known.
    """
    start, count = start_text(training), training.get("held_out_split_images")
    if start is None:
        return data_text(training)
    sentences = [data_text(training | {"held_out_split_images": None})]
    if number(count, "d") and count:
        were = "was" if count == 1 else "were"
        sentences.append(f"{counted(count, 'other image')} {were} held out of the fine-tuning.")
    return " ".join(x for x in (*sentences, f"It was {start}.") if x)


def was_held_out(training: dict[str, Any], metrics: dict[str, Any]) -> bool:
    """Tell whether an evaluation held out the very images that the training had held out."""
    fingerprint = metrics.get(_FINGERPRINT)
    return fingerprint is not None and training.get(_FINGERPRINT) == fingerprint


def held_out_noun(training: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return what to call the images that an evaluation held out."""
    return HELD_OUT if was_held_out(training, metrics) else EVALUATED


def held_out_limit(training: dict[str, Any], metrics: dict[str, Any]) -> str | None:
    """Say that the images of an evaluation may have been trained on, where they may.

    Args:
        training: of training.json.
        metrics: of metrics.json.

    Returns:
        A sentence; None where they were held out of the training too.
    """
    if was_held_out(training, metrics):
        return None
    if None in (training.get(_FINGERPRINT), metrics.get(_FINGERPRINT)):
        return f"Not known: whether it was trained on the {EVALUATED}."
    return (
        f"The {EVALUATED} are others than those held out of the training, and may have been "
        "trained on."
    )


def autoencoder_limits(training: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """Say what images a pipeline's autoencoder has seen.

    Args:
        training: of the pipeline's training.json.
        metrics: of its metrics.json.

    Returns:
        Sentences in Markdown.
    """
    own = autoencoder_report(training)
    start, data = start_text(own), plain(own.get("data"))
    if start:
        return [f"Its autoencoder was {start}: those held out here may be among them."]
    if number(own.get("train_images"), "d") is None or data is None:
        limit = "Not known here: what images its autoencoder was trained on"
        name = plain(training.get("autoencoder"))
        return [f"{limit}; see the card of {name}." if name else f"{limit}."]
    limits = [f"Its autoencoder was trained on images of {data} and no others."]
    if "reconstruction_psnr_db" not in metrics or was_held_out(own, metrics):
        return limits
    if own.get(_FINGERPRINT) is None:
        return [*limits, f"Not known: whether its autoencoder was trained on the {EVALUATED}."]
    return [
        *limits,
        f"The {EVALUATED} are others than those held out of its autoencoder's training.",
    ]
