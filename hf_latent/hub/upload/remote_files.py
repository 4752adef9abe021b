"""Files here and on the Hub, compared by their hashes, so that none is sent twice."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class LocalFile:
    """A file to send.

    Attributes:
        path: where it lies.
        size: in bytes.
        sha256: of its content, as hexadecimal digits.
    """

    path: Path
    size: int
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "LocalFile":
        """Read a file for its hash."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path, path.stat().st_size, sha256)


class RemoteFiles:
    """The files of one revision of a repository, as the Hub has them now.

    Args:
        api: asks the Hub.
        repo: `repo_id` and `repo_type`.
        revision: a branch, a pull request or a commit; None: main.
    """

    def __init__(self, api: HfApi, repo: dict[str, Any], revision: str | None):
        """List them."""
        self._api, self._where = api, {**repo, "revision": revision}
        listed = api.list_repo_tree(**self._where, recursive=True)
        self._files = {x.path: x for x in listed if isinstance(x, RepoFile)}
        self._contents: dict[str, bytes] = {}

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a file of this name."""
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._files)

    def has(self, name: str, content: LocalFile | bytes) -> bool:
        """Tell whether a file there has this content, by its hash in LFS or else in git."""
        remote = self._files.get(name)
        if remote is None:
            return False
        if remote.lfs is None:
            data = content if isinstance(content, bytes) else content.path.read_bytes()
            return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if isinstance(content, bytes):
            return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
        return (remote.lfs.size, remote.lfs.sha256) == (content.size, content.sha256)

    def read(self, name: str) -> bytes:
        """Download a small file; nothing of it stays in the cache of what was loaded."""
        if name not in self._contents:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(**self._where, filename=name, local_dir=folder)
                self._contents[name] = Path(path).read_bytes()
        return self._contents[name]

    def read_json(self, name: str) -> dict[str, Any]:
        """Download a JSON object; one that is not there, or cannot be read, is empty."""
        if name not in self:
            return {}
        try:
            values = json.loads(self.read(name))
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}
