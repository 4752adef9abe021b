"""The shards that a stream reads: in a folder, or downloaded from the Hub a few at a time."""

import shutil
import tempfile
from collections.abc import Iterable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import huggingface_hub

from hf_latent.data.latents.cache import LatentCache, LatentSplit, check_shard
from hf_latent.data.latents.download import (
    cache_errors_in_one_line,
    download_cache,
    hub_errors_in_one_line,
    pin_revision,
)
from hf_latent.data.latents.manifest import read_manifest, split_ranges
from hf_latent.errors import UserError


class ShardStore:
    """The training shards of a latent cache in a folder; each is checked before its first read.

    Args:
        name: of the cache, for messages.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], name: str):
        """Open no shard yet."""
        self.folder, self.manifest, self.name = folder, manifest, name
        ranges = split_ranges(manifest, "train")
        self.shard_names, self.rows = list(ranges), [len(x) for x in ranges.values()]
        self.shard_rows: int = manifest["shard_rows"]
        self.checked: set[int] = set()

    def open_lane(self) -> LatentSplit:
        """Return a reader of the training images for one lane of a stream."""
        return LatentSplit(self.folder, self.manifest, "train")

    def fetch(self, lane: LatentSplit, shards: Iterable[int]) -> None:
        """Make shards readable for a lane.

        Raises:
            UserError: naming a file that is missing, damaged or cannot be downloaded.
        """
        for number in set(shards) - self.checked:
            name = self.shard_names[number]
            check_shard(lane.folder / name, self.manifest["shards"][name])
            self.checked.add(number)

    def drop(self, lane: LatentSplit, shards: set[int]) -> None:
        """Release shards that a lane does not need for now."""
        for number in shards:
            lane.close(number)

    def open_validation(self) -> LatentSplit:
        """Return a reader of the held-out images. Their files stay on the disk.

        Raises:
            UserError: naming a file that is missing, damaged or cannot be downloaded.
        """
        folder = self._validation_folder()
        for name in split_ranges(self.manifest, "validation"):
            check_shard(folder / name, self.manifest["shards"][name])
        return LatentSplit(folder, self.manifest, "validation")

    def _validation_folder(self) -> Path:
        return self.folder


class HubShardStore(ShardStore):
    """The training shards of a latent cache on the Hub: downloaded when needed, then removed.

    They lie in the system's folder for temporary files (TMPDIR). Each lane has its own folder in
    it, so that no lane removes a shard that another one reads.

    Args:
        repo_id: of the data set repository.
        revision: a commit.
        manifest: of that commit.
    """

    def __init__(self, repo_id: str, revision: str | None, manifest: dict[str, Any]):
        """Download no shard yet."""
        super().__init__(Path(tempfile.mkdtemp(prefix="hf-latent-stream-")), manifest, repo_id)
        self.revision = revision
        # The process that made the folder removes it, after its workers have ended.
        Finalize(self, shutil.rmtree, (self.folder, True), exitpriority=-1)

    def open_lane(self) -> LatentSplit:
        """Return a reader of the training images in a new, empty folder."""
        return LatentSplit(Path(tempfile.mkdtemp(dir=self.folder)), self.manifest, "train")

    def fetch(self, lane: LatentSplit, shards: Iterable[int]) -> None:
        """Download and check shards; see `ShardStore.fetch`."""
        for name in (self.shard_names[number] for number in shards):
            with hub_errors_in_one_line(
                f"{name} of {self.name} cannot be downloaded",
                "resume from the last checkpoint when the Hub can be reached",
            ):
                huggingface_hub.hf_hub_download(
                    self.name,
                    name,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=lane.folder,
                )
            try:
                check_shard(lane.folder / name, self.manifest["shards"][name])
            except UserError as error:
                raise UserError(
                    f"{name} of {self.name} does not match its manifest.json: push it again"
                ) from error

    def drop(self, lane: LatentSplit, shards: set[int]) -> None:
        """Remove shards that a lane does not need for now."""
        super().drop(lane, shards)
        for number in shards:
            (lane.folder / self.shard_names[number]).unlink()

    def _validation_folder(self) -> Path:
        return download_cache(self.name, self.revision, ("validation-*.safetensors",))


def open_shard_store(source: str, revision: str | None = None) -> ShardStore:
    """Open the training shards of a latent cache for a stream.

    Args:
        source: a folder, or the id of a data set repository on the Hub. Only the manifest of a
            repository is downloaded now.
        revision: of the repository.

    Raises:
        UserError: if there is no finished cache.
    """
    if Path(source).is_dir():
        cache = LatentCache(source)
        return ShardStore(cache.folder, cache.manifest, source)
    revision = pin_revision(source, revision)
    with cache_errors_in_one_line(source):
        path = huggingface_hub.hf_hub_download(
            source, "manifest.json", repo_type="dataset", revision=revision
        )
    manifest = read_manifest(Path(path))
    if not manifest.get("shards"):
        raise UserError(f"{source} is not finished: encode all of it, and push it again")
    return HubShardStore(source, revision, manifest)
