"""Send a latent cache, with its card, to the Hub: `hf-latent push`.

Shards go first, in commits of bounded size; manifest.json, without which nothing takes them for a
cache, goes with the last. Before each commit it is looked up what the Hub has, so that a push that
was killed goes on where it stopped, and one of a whole cache sends nothing.
"""

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.hf_api import RepoFile

from hf_latent.data.latents import LatentCache
from hf_latent.errors import UserError
from hf_latent.hub.cache_card import is_unedited, render_cache_card
from hf_latent.hub.insist import insist

SHARDS_PER_COMMIT = 100
_SHARD = re.compile(r"(train|validation)-\d{6}\.safetensors")
_REPO_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_PULL_REQUEST = re.compile(r"refs/pr/(\d+)")
Operations = list[CommitOperationAdd | CommitOperationDelete]


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Send a latent cache, with its card, to the Hub as a data set.

    Attributes:
        cache: The folder of a latent cache. Its shards and manifest.json are sent, nothing else.
        repo_id: The data set on the Hub, user/name. It is made if it is missing.
        private: Make a new data set private; refuse one that is there and public.
        revision: The branch to send to, made if it is missing, or a pull request as refs/pr/1. By
            default main.
        create_pr: Propose the cache as a pull request; the same command goes on in the same one.
        license: The licence of the images, as the Hub calls it, like mit or cc-by-4.0. By default
            the card names none, or goes on naming the one it names.
        overwrite_card: Replace a README.md that was edited on the Hub; otherwise it is kept.
    """

    cache: str
    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    license: str | None = None
    overwrite_card: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the flag."""
        name = self.repo_id
        if not _REPO_ID.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
            raise UserError(f"--repo_id {name} is not of the form user/name")
        if self.create_pr and self.revision:
            raise UserError("--create_pr makes a revision of its own: leave --revision out")


def push(config: PushConfig) -> str:
    """Verify a cache, send what the Hub does not have of it, and print the address.

    Args:
        config: what to send, and where.

    Returns:
        The address of the data set, of the branch or of the pull request.

    Raises:
        UserError: if the cache is not whole, or the Hub cannot be reached or refuses.
    """
    manifest = _verified_manifest(Path(config.cache))
    upload = _Upload(config, manifest)
    insist(upload.prepare, config.repo_id)
    while insist(upload.send_next, config.repo_id):
        pass
    if upload.card_is_kept:
        print(
            f"the README.md of {config.repo_id} was edited and is kept; "
            "--overwrite_card true replaces it",
            file=sys.stderr,
        )
    rows = sum(split["rows"] for split in manifest["splits"].values())
    done = "sent" if upload.sent else "already there"
    print(
        f"latents of {rows:,} images in {len(manifest['shards']):,} files, {done}: {upload.url()}"
    )
    return upload.url()


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


class _Upload:
    """A cache on its way to a data set.

    Attributes:
        sent: the files that the last commit changed; empty before there was one.
        card_is_kept: whether the README.md there was edited and stays.
        revision: the branch or pull request; None: a pull request yet to be opened.
    """

    def __init__(self, config: PushConfig, manifest: dict[str, Any]):
        self.config, self.manifest = config, manifest
        self.api = HfApi(token=True)  # a token is required
        self.sent: list[str] = []
        self.card_is_kept = False
        self.revision = None if config.create_pr else config.revision or "main"
        self.manifest_json = (json.dumps(manifest, indent=2) + "\n").encode()
        cache_id = hashlib.sha256(self.manifest_json).hexdigest()[:12]
        self.title = f"Add the latent cache {cache_id}"
        self.repo: dict[str, Any] = {"repo_id": config.repo_id, "repo_type": "dataset"}

    def prepare(self) -> None:
        """Make the data set and the branch, where they are missing; refuse before anything is sent.

        Raises:
            UserError: if the name is a model's, or the data set is public against `--private`.
        """
        name = self.config.repo_id
        DatasetCard(self._render(self.config.license)).validate()
        if self.api.repo_exists(**self.repo):
            if self.config.private and not self.api.repo_info(**self.repo).private:
                raise UserError(
                    f"{name} is public on the Hub, against --private: make it private in its "
                    "settings, or choose another --repo_id"
                )
        elif self.api.repo_exists(name, repo_type="model"):
            raise UserError(f"{name} is a model on the Hub: choose another --repo_id for the cache")
        else:
            private = True if self.config.private else None
            self.api.create_repo(**self.repo, private=private, exist_ok=True)
        if self.revision not in (None, "main") and not _PULL_REQUEST.fullmatch(self.revision or ""):
            self.api.create_branch(**self.repo, branch=self.revision or "", exist_ok=True)

    def send_next(self) -> bool:
        """Make the next commit of those that are still needed.

        Returns:
            False if none is.

        Raises:
            UserError: if the Hub leaves out what was sent.
        """
        if self.revision is None:
            self.revision = self._open_pull_request()
        listed = self.api.list_repo_tree(**self.repo, revision=self.revision)
        operations = self._next_operations({x.path: x for x in listed if isinstance(x, RepoFile)})
        paths = [x.path_in_repo for x in operations]
        if paths and paths == self.sent:
            raise UserError(
                f"{self.config.repo_id} still lacks {paths[0]} after it was sent: a .gitignore "
                "there may leave it out"
            )
        if paths:
            commit = self.api.create_commit(
                **self.repo,
                operations=operations,
                commit_message=self.title,
                revision=self.revision,
                create_pr=self.revision is None,
            )
            self.revision = self.revision or commit.pr_revision
            self.sent = paths
        return bool(paths)

    def url(self) -> str:
        """Return the address of what was sent to."""
        address = f"{self.api.endpoint}/datasets/{self.config.repo_id}"
        proposal = _PULL_REQUEST.fullmatch(self.revision or "")
        if proposal:
            return f"{address}/discussions/{proposal[1]}"
        return address if self.revision in (None, "main") else f"{address}/tree/{self.revision}"

    def _open_pull_request(self) -> str | None:
        """Return the revision of one that an earlier push of this cache opened."""
        found = self.api.get_repo_discussions(
            **self.repo,
            author=self.api.whoami()["name"],
            discussion_type="pull_request",
            discussion_status="open",
        )
        return next((x.git_reference for x in found if x.title == self.title), None)

    def _next_operations(self, remote: dict[str, RepoFile]) -> Operations:
        """Plan the next commit from what is there; the last one makes the cache whole."""
        shards, folder = self.manifest["shards"], Path(self.config.cache)
        missing = [
            name
            for name, known in shards.items()
            if not _is_there(remote.get(name), folder / name, known["bytes"], known["sha256"])
        ]
        add = partial(map, lambda name: CommitOperationAdd(name, folder / name))
        if len(missing) > SHARDS_PER_COMMIT:
            # Another cache's manifest would not fit these shards: for a while there is none.
            gone = ["manifest.json"] if "manifest.json" in remote else []
            return [*add(missing[:SHARDS_PER_COMMIT]), *map(CommitOperationDelete, gone)]
        operations: Operations = [*add(missing)]
        stale = [name for name in remote if _SHARD.fullmatch(name) and name not in shards]
        operations += map(CommitOperationDelete, stale)
        card = self._new_card(remote)
        if card is not None:
            operations.append(CommitOperationAdd("README.md", card.encode()))
        if not _is_same(remote.get("manifest.json"), self.manifest_json):
            operations.append(CommitOperationAdd("manifest.json", self.manifest_json))
        return operations

    def _new_card(self, remote: dict[str, RepoFile]) -> str | None:
        """Return the card to write, or None if the one there is it, or was edited."""
        license = self.config.license
        if "README.md" in remote:
            path = self.api.hf_hub_download(
                **self.repo, filename="README.md", revision=self.revision, force_download=True
            )
            before = Path(path).read_text(encoding="utf-8", errors="replace")
            if is_unedited(before):
                license = license or DatasetCard(before).data.get("license")
            elif not self.config.overwrite_card:
                self.card_is_kept = True
                return None
        card = self._render(license)
        return None if _is_same(remote.get("README.md"), card.encode()) else card

    def _render(self, license: str | None) -> str:
        return render_cache_card(self.manifest, self.config.repo_id, license)


def _is_there(remote: RepoFile | None, path: Path, size: int, sha256: str) -> bool:
    """Tell whether the Hub has a shard, by its hash in LFS or else by its content in git."""
    if remote is None or remote.lfs is None:
        return _is_same(remote, path.read_bytes()) if remote else False
    return remote.lfs.size == size and remote.lfs.sha256 == sha256


def _is_same(remote: RepoFile | None, content: bytes) -> bool:
    """Tell whether the Hub has a file with this content."""
    if remote is None:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
