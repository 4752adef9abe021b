"""What the card of an autoencoder says; `autoencoder_card.md` is its template."""

from typing import Any

from huggingface_hub import EvalResult

from hf_latent.hub.card.facts import ModelFacts
from hf_latent.hub.card.figures import HELD_OUT, Figure, reconstruction_figures
from hf_latent.hub.card.origin import (
    EVALUATED,
    held_out_limit,
    origin_text,
    start_text,
)
from hf_latent.hub.card.results import latent_results, reconstruction_results
from hf_latent.hub.card.tables import figure_rows, latent_rows
from hf_latent.hub.card.text import code_block, counted, plain
from hf_latent.hub.card.training import hub_id, training_text, versions_text
from hf_latent.models.load import released_models

COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}


def autoencoder_texts(facts: ModelFacts, source: str) -> tuple[dict[str, Any], list[EvalResult]]:
    """Say what is known of an autoencoder.

    Args:
        facts: of its folder.
        source: what the examples load.

    Returns:
        What the template shows, and the results for the metadata.
    """
    known = facts.training | facts.metrics
    channels, height, width = facts.compression.image_shape
    name = known.get("data_name", known.get("data"))
    data = plain(name)
    title = known.get("name") or (f"Autoencoder of {name}" if name else "Autoencoder")
    colour = COLOURS.get(channels, f"{channels}-channel")
    prefix = "test_" if "test_psnr_db" in known else "held_out_"
    # What the training itself measures it holds out; a release's report is of its training too.
    alone = prefix == "held_out_" or not facts.training
    unseen = None if alone else held_out_limit(facts.training, facts.metrics)
    figures = _figures(known, prefix, EVALUATED if unseen else HELD_OUT)
    start = start_text(known)
    data_told, trained = origin_text(known), training_text(known)
    recipe = known.get("recipe", facts.recipe)
    texts = {
        "name": title,
        "title": plain(title),
        "tags": ["autoencoder"],
        "summary": known.get("summary")
        or f"An autoencoder for {colour} images of {height}x{width} pixels"
        + (f", {'fine-tuned' if start else 'trained'} on {data}" if data else "")
        + ": the first stage of a latent diffusion model.",
        "source": source,
        "load_name": known.get("name") if known.get("name") in released_models() else source,
        "folded": facts.folded,
        "compression": facts.compression,
        "factor": height // facts.compression.latent_shape[1],
        "vae_class": facts.vae_class,
        "weights": facts.weights["vae"],
        "measured_on": _measured_on(known, prefix, bool(start), bool(unseen)),
        "rows": figure_rows(figures) + latent_rows(known),
        "data": known.get("data_text") or data_told,
        "counts": data_told if "data_text" in known else None,
        "training": trained,
        "recipe": code_block(recipe, "yaml") if recipe else None,
        "names_only": "recipe" not in known,
        "seen": _seen(start, bool(data_told and trained)),
        "unseen": unseen,
        "versions": versions_text(known),
        "pictures": facts.pictures,
        "about": known,
    }
    named = (hub_id(known.get("data")) or str(known.get("data")), str(name))
    return texts, reconstruction_results(figures, named) + latent_results(known, named)


def _figures(known: dict[str, Any], prefix: str, held_out: str) -> list[Figure]:
    figures = reconstruction_figures(known, prefix, known.get("perceptual_network"), held_out)
    if prefix == "test_":  # a release keeps the training's KL without a prefix
        figures += reconstruction_figures({k: v for k, v in known.items() if k[:3] == "kl_"}, "")
    return figures


def _seen(start: str | None, trained: bool) -> str | None:
    """Say what it has seen; None where that is not known."""
    if start:
        return f"It was {start}: those held out here may be among them."
    if trained:
        return "It has seen no images but those above; how well it keeps others was not measured."
    return None


def _measured_on(known: dict[str, Any], prefix: str, fine_tuned: bool, other: bool) -> str | None:
    """Say what images the figures are of: the model may know those that others trained on."""
    count = known.get(f"{prefix}images")
    if not isinstance(count, int):
        return None
    rule = known.get("held_out_rule")
    which = "held out of its fine-tuning" if fine_tuned else "that it never saw"
    which = "held out in the evaluation" if other else which
    return f"{counted(count, 'image')} {which}" + (f" ({rule})" if rule else "")
