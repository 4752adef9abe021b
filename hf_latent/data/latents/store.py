"""Where a stream has its shards: a folder, or the Hub, of which few are on the disk at once."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Lock
from typing import Any

import huggingface_hub

from hf_latent.data.latents.cache import LatentCache, LatentSplit, check_content
from hf_latent.data.latents.download import (
    download_cache,
    download_manifest,
    pin_revision,
)
from hf_latent.data.latents.manifest import read_manifest, shard_rows_by_name
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
        by_name = shard_rows_by_name(manifest, "train")
        self.shard_names, self.rows = list(by_name), list(by_name.values())
        self.shard_rows: int = manifest["shard_rows"]
        self.split = LatentSplit(folder, manifest, "train")
        self.checked: set[int] = set()

    def fetch(self, shards: Iterable[int]) -> None:
        """Make sure that some shards are there and whole.

        Raises:
            UserError: naming the file that is not.
        """
        for number in set(shards) - self.checked:
            name = self.shard_names[number]
            check_content(self.folder / name, self.manifest["shards"][name])
            self.checked.add(number)

    def drop(self, shards: Iterable[int]) -> None:
        """Take note that some shards are not needed for now."""

    def open_validation(self) -> LatentSplit:
        """Open the held-out images, which stay.

        Raises:
            UserError: naming the file that cannot be had, or is not what was written.
        """
        folder = self._validation_folder()
        for name in shard_rows_by_name(self.manifest, "validation"):
            check_content(folder / name, self.manifest["shards"][name])
        return LatentSplit(folder, self.manifest, "validation")

    def _validation_folder(self) -> Path:
        return self.folder


class HubShardStore(ShardStore):
    """The training shards of a latent cache on the Hub: downloaded when needed, then removed.

    They lie in the system's folder for temporary files (TMPDIR).

    Args:
        repo_id: of the data set repository.
        revision: pinned, a commit.
        manifest: of that commit.
    """

    def __init__(self, repo_id: str, revision: str | None, manifest: dict[str, Any]):
        """Download nothing yet."""
        self._repo_id, self._revision, self._manifest = repo_id, revision, manifest
        self._parent: Path | None = None
        self._start()

    def _start(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="hf-latent-stream-", dir=self._parent))
        # Only by the process that made it, and after its workers have ended.
        Finalize(self, shutil.rmtree, (folder, True), exitpriority=-1)
        super().__init__(folder, self._manifest, self._repo_id)
        self._users: Counter[int] = Counter()
        self._downloads: dict[int, Future[None]] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle or copy what is needed to start: a worker has a folder of its own, in this one."""
        return {
            "_repo_id": self._repo_id,
            "_revision": self._revision,
            "_manifest": self._manifest,
            "_parent": self.folder,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew."""
        self.__dict__.update(state)
        self._start()

    def fetch(self, shards: Iterable[int]) -> None:
        """Download some shards, and check them; several threads may ask.

        Raises:
            UserError: naming the file that cannot be had, or is not what was written.
        """
        for number in shards:
            with self._lock:
                self._users[number] += 1
                first = number not in self._downloads
                download = self._downloads.setdefault(number, Future())
            if first:  # the others wait for it
                try:
                    self._download(self.shard_names[number])
                    download.set_result(None)
                except UserError as error:
                    download.set_exception(error)
            download.result()

    def _download(self, name: str) -> None:
        try:
            huggingface_hub.hf_hub_download(
                self._repo_id,
                name,
                repo_type="dataset",
                revision=self._revision,
                local_dir=self.folder,
            )
        except Exception as error:  # what the Hub's client raises has no common class
            cause = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name} of {self._repo_id} cannot be downloaded ({type(error).__name__}: "
                f"{cause}): go on from the last checkpoint when the Hub can be reached"
            ) from error
        try:
            check_content(self.folder / name, self.manifest["shards"][name])
        except UserError as error:
            raise UserError(
                f"{name} of {self._repo_id} is not what its manifest.json says: push it again"
            ) from error

    def _validation_folder(self) -> Path:
        return download_cache(self._repo_id, self._revision, ("validation-*.safetensors",))

    def drop(self, shards: Iterable[int]) -> None:
        """Remove the shards that no lane needs for now."""
        with self._lock:
            for number in shards:
                self._users[number] -= 1
                if self._users[number] == 0:
                    del self._downloads[number]
                    self.split.close(number)
                    (self.folder / self.shard_names[number]).unlink(missing_ok=True)


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
