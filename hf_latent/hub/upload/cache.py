"""What a push sends of a latent cache: its shards, its manifest and a card."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hf_latent.data.latents.cache import LatentCache
from hf_latent.errors import UserError
from hf_latent.hub.card.cache import render_cache_card
from hf_latent.hub.upload.remote_files import LocalFile, RemoteFiles
from hf_latent.hub.upload.upload import Contents

_SHARD = re.compile(r"(train|validation)-\d{6}\.safetensors")


class CacheContents(Contents):
    """A whole latent cache, whose files are all its own.

    Args:
        folder: of the cache.
        repo_id: of the data set, for the card.

    Raises:
        UserError: if the cache is not whole, or names files that are none of a cache.
    """

    kind = "dataset"

    def __init__(self, folder: Path, repo_id: str):
        """Verify every file."""
        self.manifest, self.repo_id = _verified_manifest(folder), repo_id
        self.files = {
            name: LocalFile(folder / name, known["bytes"], known["sha256"])
            for name, known in self.manifest["shards"].items()
        }
        content = (json.dumps(self.manifest, indent=2) + "\n").encode()
        self.entry = ("manifest.json", content)
        self.title = f"Add the latent cache {hashlib.sha256(content).hexdigest()[:12]}"

    def __str__(self) -> str:
        """Say what it is, in a few words."""
        rows = sum(split["rows"] for split in self.manifest["splits"].values())
        return f"latents of {rows:,} images in {len(self.files):,} files"

    def card(self, license: str | None) -> str:
        """Return the card that the manifest gives."""
        return render_cache_card(self.manifest, self.repo_id, license)

    def pictures(self, card: str) -> dict[str, LocalFile]:
        """Return none: latents are not shown."""
        return {}

    def stale(self, remote: RemoteFiles) -> list[str]:
        """Return the shards of the cache there; others of such names are not a cache's."""
        shards = remote.read_json("manifest.json").get("shards")
        names = shards if isinstance(shards, dict) else {}
        return [
            name
            for name in names
            if _SHARD.fullmatch(name) and name in remote and name not in self.files
        ]

    def refuse(self, repo_id: str, remote: RemoteFiles) -> None:
        """Refuse nothing: a cache may lie beside whatever else a data set has."""


def _verified_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a whole cache whose files are all its own."""
    if not folder.is_dir():
        raise UserError(f"--cache {folder} is not a folder")
    cache = LatentCache(folder)
    for name in cache.manifest["shards"]:
        if not _SHARD.fullmatch(name):
            raise UserError(f"{folder}/manifest.json names {name!r}, which is not a shard's name")
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link: put the file itself in its place")
    cache.verify()
    return cache.manifest
