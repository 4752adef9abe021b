"""The card of a latent cache, made from its manifest alone; what the manifest lacks is left out."""

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
    """Write a cache's card.

    Args:
        manifest: the content of a complete cache's manifest.json.
        repo_id: the data set that the card's examples name.
        license: of the images, as the Hub calls it; None: the card names none.

    Returns:
        The card: metadata as YAML, then Markdown, then a comment with the hash of both.
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
    """Name the Hub's size category of a data set.

    Args:
        rows: how many.

    Returns:
        One of the Hub's names, like 10K<n<100K.
    """
    limits = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    place = next((i for i in range(len(limits)) if rows < 10 ** (i + 3)), len(limits))
    if place == len(limits):
        return "n>1T"
    return f"{limits[place - 1]}<n<{limits[place]}" if place else "n<1K"
