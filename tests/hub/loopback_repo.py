"""Files, commits and pull requests of one repository of the loopback Hub, in memory."""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".png")
SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"]


class Refusal(Exception):
    """An answer with an error status, in the words of the Hub."""

    def __init__(self, status: int, message: str, code: str = "", errors: list[str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.body: dict[str, Any] = {"error": message}
        if errors:
            self.body["errors"] = [{"message": x} for x in errors]


class Blob(NamedTuple):
    """A file's content, and whether it is kept in LFS."""

    data: bytes
    lfs: bool

    @staticmethod
    def is_large(path: str, data: bytes, size: int = 0) -> bool:
        return path.endswith(LARGE) or max(size, len(data)) > 10_000_000

    @property
    def pointer(self) -> bytes:
        sha256 = hashlib.sha256(self.data).hexdigest()
        head = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}"
        return f"{head}\nsize {len(self.data)}\n".encode()

    @property
    def blob_id(self) -> str:
        kept = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.blob_id

    def part(self, wanted: str | None, headers: dict[str, str]) -> tuple[int, dict, bytes]:
        """Answer a request for the whole or for a range like bytes=0-7, bytes=8- or bytes=-8."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
        if not found:
            return 200, headers, self.data
        first, last, size = found[1], found[2], len(self.data)
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            return 416, headers | {"Content-Range": f"bytes */{size}"}, b""
        headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return 206, headers, self.data[start:stop]


@dataclass
class Repo:
    """A repository; its first commit has a .gitattributes, as on the Hub.

    Attributes:
        history: (revision, summary, the files after it) of each commit.
    """

    kind: str
    id: str
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    pull_requests: list[dict[str, Any]] = field(default_factory=list)
    history: list[tuple[str, str, dict[str, Blob]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "new")
        self.history.clear()

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def sha(self, rev: str) -> str:
        found = self.refs.get(rev, rev)
        if found not in self.commits:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return found

    def files(self, rev: str) -> dict[str, Blob]:
        return self.commits[self.sha(rev)]

    def commit(self, rev: str, files: dict[str, Blob], summary: str) -> str:
        content = [(path, blob.blob_id) for path, blob in sorted(files.items())]
        sha = hashlib.sha1(f"{self.id} {len(self.commits)} {content}".encode()).hexdigest()
        self.commits[sha], self.refs[rev] = files, sha
        self.history.append((rev, summary, files))
        return sha

    def propose(self, title: str, author: str) -> str:
        """Open a pull request and return its revision."""
        number = len(self.pull_requests) + 1
        known = {"title": title, "num": number, "author": {"name": author}, "status": "open"}
        known |= {"createdAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")}
        known |= {"repo": {"name": self.id, "type": self.kind[:-1]}, "isPullRequest": True}
        self.pull_requests.append(known)
        return f"refs/pr/{number}"

    def entries(self, rev: str, folder: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        """List a folder, as the tree endpoint does."""
        prefix, found = f"{folder}/" if folder else "", {}
        for path, blob in sorted(self.files(rev).items()):
            if not path.startswith(prefix):
                continue
            inner = path[len(prefix) :].split("/")
            for depth in range(1, len(inner) if recursive else min(len(inner), 2)):
                name = prefix + "/".join(inner[:depth])
                found[name] = {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
            if len(inner) == 1 or recursive:
                found[path] = self._entry(path, blob)
        if folder and not found:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return list(found.values())

    def around(self, rev: str, path: str) -> list[dict[str, Any]]:
        """Return the entry of a path, if there is one."""
        return [x for x in self.entries(rev) if x["path"] == path]

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.blob_id}
        if blob.lfs:
            kept = {"oid": blob.etag, "size": len(blob.data), "pointerSize": len(blob.pointer)}
            entry["lfs"] = kept
        return entry


def check_card(content: str, kind: str) -> list[str]:
    """Return the errors in a card's metadata, by the rules of the Hub that tests rely on."""
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not found:
        return []  # a card without metadata is a warning on the Hub, not an error
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    lists = ("tags", "task_categories", "size_categories", "source_datasets")
    wrong = [f'"{x}" must be an array' for x in lists if not _texts(data.get(x, []))]
    if not isinstance(data.get("license", ""), str) or " " in data.get("license", ""):
        wrong.append('"license" must be one of the known licences')
    if not isinstance(data.get("viewer", False), bool):
        wrong.append('"viewer" must be a boolean')
    if kind == "dataset" and not set(data.get("size_categories", [])) <= set(SIZES):
        wrong.append('"size_categories" must be one of the known sizes')
    return wrong


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)
