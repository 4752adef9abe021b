"""What the card of an autoencoder says; `autoencoder_card.md` is its template."""

from typing import Any

from huggingface_hub import EvalResult

from hf_latent.hub.card_results import reconstruction_results
from hf_latent.hub.card_tables import latent_rows, reconstruction_rows
from hf_latent.hub.card_text import code_block, counted, plain
from hf_latent.hub.card_training import data_text, hub_id, training_text, versions_text
from hf_latent.hub.model_facts import ModelFacts
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
    rows = reconstruction_rows(known, prefix, known.get("perceptual_network"))
    if prefix == "test_":  # a release keeps the training's KL without a prefix
        rows += reconstruction_rows({k: v for k, v in known.items() if k[:3] == "kl_"}, "")
    recipe = known.get("recipe", facts.recipe)
    texts = {
        "name": title,
        "title": plain(title),
        "tags": ["autoencoder"],
        "summary": known.get("summary")
        or f"An autoencoder for {colour} images of {height}x{width} pixels"
        + (f", trained on {data}" if data else "")
        + ": the first stage of a latent diffusion model.",
        "source": source,
        "load_name": known.get("name") if known.get("name") in released_models() else source,
        "folded": facts.folded,
        "compression": facts.compression,
        "factor": height // facts.compression.latent_shape[1],
        "vae_class": facts.vae_class,
        "weights": facts.weights["vae"],
        "measured_on": _measured_on(known, prefix),
        "rows": rows + latent_rows(known),
        "data": known.get("data_text") or data_text(known),
        "counts": data_text(known) if "data_text" in known else None,
        "training": training_text(known),
        "recipe": code_block(recipe, "yaml") if recipe else None,
        "versions": versions_text(known),
        "pictures": facts.pictures,
        "about": known,
    }
    named = (hub_id(known.get("data")) or str(known.get("data")), str(name))
    return texts, reconstruction_results(known, prefix, named)


def _measured_on(known: dict[str, Any], prefix: str) -> str | None:
    count = known.get(f"{prefix}images")
    if not isinstance(count, int):
        return None
    rule = known.get("held_out_rule")
    return f"{counted(count, 'image')} that it never saw" + (f" ({rule})" if rule else "")
