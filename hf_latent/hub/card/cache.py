"""The card of a latent cache, made from its manifest alone; it omits what the manifest lacks."""

import math
import re
from typing import Any

import huggingface_hub

from hf_latent.hub.card.render import render_card
from hf_latent.hub.card.text import plain

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # safe to paste into a shell and into Python


def render_cache_card(
    manifest: dict[str, Any], repo_id: str = "user/name", license: str | None = None
) -> str:
    """Render a cache's card.

    Args:
        manifest: the content of a complete cache's manifest.json.
        repo_id: of the data set, for the examples.
        license: of the images, by the Hub's name; None: the card names none.

    Returns:
        The card: metadata as YAML, then Markdown, then the signature.
    """
    rows = sum(split["rows"] for split in manifest["splits"].values())
    title = f"Latents of {manifest.get('data') or 'images'}"
    autoencoder = str(manifest.get("autoencoder") or "")
    image_shape, latent_shape = manifest.get("image_shape"), manifest.get("latent_shape")
    card_data = huggingface_hub.DatasetCardData(
        license=license,
        pretty_name=str(plain(title)),
        tags=["latent-diffusion", "latents", "hf-latent", "safetensors"],
        task_categories=["unconditional-image-generation"],
        size_categories=[size_category(rows)],
        viewer=False,  # it cannot show safetensors
    )
    labels = manifest.get("id2label") or {}
    return render_card(
        "cache_card.md",
        card_data,
        manifest=manifest,
        title=title,
        repo_id=repo_id,
        rows=rows,
        vae=autoencoder if _NAME.fullmatch(autoencoder) else None,
        image_values=math.prod(image_shape or ()),
        latent_values=math.prod(latent_shape or ()),
        size=sum(shard["bytes"] for shard in manifest["shards"].values()),
        class_names={int(label): labels[label] for label in sorted(labels, key=int)},
    )


def size_category(rows: int) -> str:
    """Return the Hub's name for the size of a data set, like 10K<n<100K."""
    limits = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    reached = len(str(rows)) - 3  # number of limits that the size reaches
    if reached <= 0:
        return f"n<{limits[0]}"
    if reached >= len(limits):
        return f"n>{limits[-1]}"
    return f"{limits[reached - 1]}<n<{limits[reached]}"
