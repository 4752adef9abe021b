"""The shards of a stream: a folder, or the Hub, a few of whose shards are on the disk at once."""

import shutil
import tempfile
from collections.abc import Iterable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import huggingface_hub

from hf_latent.data.latents.cache import LatentCache, LatentSplit, check_content
from hf_latent.data.latents.download import download_cache, download_manifest, pin_revision
from hf_latent.data.latents.manifest import read_manifest, split_ranges
from hf_latent.errors import UserError


class ShardStore:
    """The training shards of a latent cache in a folder; each is checked when it is first read.

    Args:
        folder: of the cache.
        manifest: of the cache.
        name: of the cache, for messages.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], name: str):
        """Open nothing yet."""
        self.folder, self.manifest, self.name = folder, manifest, name
        ranges = split_ranges(manifest, "train")
        self.shard_names, self.rows = list(ranges), [len(x) for x in ranges.values()]
        self.shard_rows: int = manifest["shard_rows"]
        self.checked: set[int] = set()

    def open_lane(self) -> LatentSplit:
        """Open the training images for one lane of a stream, which reads what it has fetched."""
        return LatentSplit(self.folder, self.manifest, "train")

    def fetch(self, lane: LatentSplit, shards: Iterable[int]) -> None:
        """Make sure that some shards are there and whole.

        Args:
            lane: of `open_lane`.
            shards: their numbers.

        Raises:
            UserError: naming the file that cannot be had, or is not what was written.
        """
        for number in set(shards) - self.checked:
            name = self.shard_names[number]
            check_content(lane.folder / name, self.manifest["shards"][name])
            self.checked.add(number)

    def drop(self, lane: LatentSplit, shards: Iterable[int]) -> None:
        """Give up some shards, which the lane does not need for now."""
        for number in shards:
            lane.close(number)

    def open_validation(self) -> LatentSplit:
        """Open the held-out images, which stay.

        Raises:
            UserError: naming the file that cannot be had, or is not what was written.
        """
        folder = self._validation_folder()
        for name in split_ranges(self.manifest, "validation"):
            check_content(folder / name, self.manifest["shards"][name])
        return LatentSplit(folder, self.manifest, "validation")

    def _validation_folder(self) -> Path:
        return self.folder


class HubShardStore(ShardStore):
    """The training shards of a latent cache on the Hub: downloaded when needed, then removed.

    They lie in the system's folder for temporary files (TMPDIR), those of each lane in a folder of
    its own, so that no lane removes what another reads.

    Args:
        repo_id: of the data set repository.
        revision: pinned, a commit.
        manifest: of that commit.
    """

    def __init__(self, repo_id: str, revision: str | None, manifest: dict[str, Any]):
        """Download nothing yet."""
        super().__init__(Path(tempfile.mkdtemp(prefix="hf-latent-stream-")), manifest, repo_id)
        self.revision = revision
        # Only by the process that made it, and after its workers have ended.
        Finalize(self, shutil.rmtree, (self.folder, True), exitpriority=-1)

    def open_lane(self) -> LatentSplit:
        """Open the training images in a new folder, which is empty."""
        return LatentSplit(Path(tempfile.mkdtemp(dir=self.folder)), self.manifest, "train")

    def fetch(self, lane: LatentSplit, shards: Iterable[int]) -> None:
        """Download some shards, and check them.

        Args:
            lane: of `open_lane`.
            shards: their numbers.

        Raises:
            UserError: naming the file that cannot be had, or is not what was written.
        """
        for name in (self.shard_names[number] for number in shards):
            try:
                huggingface_hub.hf_hub_download(
                    self.name,
                    name,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=lane.folder,
                )
            except Exception as error:  # what the Hub's client raises has no common class
                cause = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{name} of {self.name} cannot be downloaded ({type(error).__name__}: "
                    f"{cause}): go on from the last checkpoint when the Hub can be reached"
                ) from error
            try:
                check_content(lane.folder / name, self.manifest["shards"][name])
            except UserError as error:
                raise UserError(
                    f"{name} of {self.name} does not match its manifest.json: push it again"
                ) from error

    def drop(self, lane: LatentSplit, shards: Iterable[int]) -> None:
        """Remove some shards, which the lane does not need for now."""
        for number in shards:
            lane.close(number)
            (lane.folder / self.shard_names[number]).unlink()

    def _validation_folder(self) -> Path:
        return download_cache(self.name, self.revision, ("validation-*.safetensors",))


def open_shard_store(source: str, revision: str | None = None) -> ShardStore:
    """Open the training shards of a latent cache, for a stream.

    Args:
        source: a folder, or the id of a data set repository on the Hub.
        revision: of the repository.

    Returns:
        The store; of the Hub, only the manifest is downloaded.

    Raises:
        UserError: if there is no whole cache.
    """
    if Path(source).is_dir():
        cache = LatentCache(source)
        return ShardStore(cache.folder, cache.manifest, source)
    revision = pin_revision(source, revision)
    manifest = read_manifest(download_manifest(source, revision))
    if not manifest.get("shards"):
        raise UserError(f"{source} is not finished: push it again")
    return HubShardStore(source, revision, manifest)
