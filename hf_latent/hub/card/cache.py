"""The card of a latent cache, made from its manifest alone; what the manifest lacks is left out."""

import math
import re
from pathlib import Path
from typing import Any

import huggingface_hub

from hf_latent.hub.card.signature import sign
from hf_latent.hub.card.text import plain, size_text

TEMPLATE = Path(__file__).with_name("cache_card.md")
SHOWN_CLASSES = 100
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
    data, autoencoder = (plain(manifest.get(key)) for key in ("data", "autoencoder"))
    title = f"Latents of {data}" if data else "Latents of images"
    card_data = huggingface_hub.DatasetCardData(
        license=license,
        pretty_name=title,
        tags=["latent-diffusion", "latents", "hf-latent", "safetensors"],
        task_categories=["unconditional-image-generation"],
        size_categories=[size_category(rows)],
        viewer=False,  # it cannot show safetensors
    )
    image_shape, latent_shape = manifest.get("image_shape"), manifest.get("latent_shape")
    labels = sorted((manifest.get("id2label") or {}).items(), key=lambda item: int(item[0]))
    shards = manifest["shards"]
    card = huggingface_hub.DatasetCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        repo_id=repo_id,
        rows=rows,
        data=data,
        autoencoder=autoencoder,
        vae=autoencoder if _NAME.fullmatch(autoencoder or "") else None,
        autoencoder_sha256=plain(manifest.get("autoencoder_sha256")),
        preprocessing=plain(manifest.get("preprocessing")),
        dtype=plain(manifest.get("dtype")),
        mirrored=manifest.get("mirrored"),
        image_shape=image_shape,
        image_values=math.prod(image_shape) if image_shape else None,
        latent_shape=latent_shape,
        latent_values=math.prod(latent_shape) if latent_shape else None,
        resolution=_resolution(image_shape),
        resize_mode=_resize_mode(manifest.get("preprocessing")),
        splits=[
            (plain(name), split["rows"], plain(split.get("fingerprint")))
            for name, split in manifest["splits"].items()
        ],
        shards=shards,
        first_shard=min(shards),
        size=size_text(sum(shard["bytes"] for shard in shards.values())),
        latents_mean=manifest.get("latents_mean"),
        latents_std=manifest.get("latents_std"),
        classes=[(int(label), plain(name)) for label, name in labels[:SHOWN_CLASSES]],
        more_classes=len(labels[SHOWN_CLASSES:]),
    )
    return sign(str(card))


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


def _resolution(image_shape: list[int] | None) -> str | None:
    """Return what `--resolution` takes: one number for a square, else "H,W"."""
    if not image_shape:
        return None
    height, width = image_shape[1:]
    return str(height) if height == width else f"{height},{width}"


def _resize_mode(preprocessing: str | None) -> str | None:
    """Return what `--resize_mode` takes, where it is not the default."""
    return "pad" if str(preprocessing).startswith("pad ") else None
