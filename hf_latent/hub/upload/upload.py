"""Send files to a repository on the Hub, so that a push that was killed goes on where it stopped.

Before each commit it is looked up what the Hub has, so one of what is all there sends nothing. A
commit has a bounded number of files; the entry, the file without which nothing takes the others for
a whole, goes with the last. Only files are removed that an earlier push sent.
"""

import re
from abc import ABC, abstractmethod
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard

from hf_latent.errors import UserError
from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.upload.config import PushConfig
from hf_latent.hub.upload.remote_files import LocalFile, RemoteFiles

FILES_PER_COMMIT = 100
_PULL_REQUEST = re.compile(r"refs/pr/(\d+)")
Kind = Literal["model", "dataset"]
Operations = list[CommitOperationAdd | CommitOperationDelete]


class Contents(ABC):
    """What a push sends: files, an entry and a card.

    Attributes:
        kind: of the repository.
        title: of the commits; says which contents these are, so that a push finds its own pull
            request again.
        files: by their names in the repository, without the entry, the card and its pictures.
        entry: the name and content of the file that makes the others a whole.
    """

    kind: Kind
    title: str
    files: dict[str, LocalFile]
    entry: tuple[str, bytes]

    @abstractmethod
    def card(self, license: str | None) -> str:
        """Return the text of README.md, with the licence of the images or the model."""

    @abstractmethod
    def pictures(self, card: str) -> dict[str, LocalFile]:
        """Return the pictures that a card shows and that are here, by their names in it."""

    @abstractmethod
    def stale(self, remote: RemoteFiles) -> list[str]:
        """Return the names of what an earlier push sent and this one does not."""

    @abstractmethod
    def refuse(self, repo_id: str, remote: RemoteFiles) -> None:
        """Raise a `UserError` if these contents must not take the place of what is there.

        Args:
            repo_id: of the repository, for the message.
            remote: its files.
        """


class Upload:
    """Contents on their way to a repository; `insist` may repeat each of its steps.

    Attributes:
        sent: the files that the last commit changed; empty before there was one.
        card_is_kept: whether the README.md there was edited and stays.
        revision: the branch or pull request; None: a pull request yet to be opened.
    """

    def __init__(self, config: PushConfig, contents: Contents):
        """Prepare to send; nothing is asked of the Hub yet."""
        self.config, self.contents = config, contents
        self.api = HfApi(token=True)  # a token is required
        self.sent: list[str] = []
        self.card_is_kept = False
        self.revision = None if config.create_pr else config.revision or "main"
        self.repo: dict[str, Any] = {"repo_id": config.repo_id, "repo_type": contents.kind}

    def prepare(self) -> None:
        """Make the repository and the branch, where they are missing.

        Raises:
            UserError: for what would be refused later, before anything is sent.
        """
        RepoCard(self.contents.card(self.config.license)).validate(self.contents.kind)
        open_repository(self.api, self.config, self.contents.kind)
        if self.revision not in (None, "main") and not _PULL_REQUEST.fullmatch(self.revision or ""):
            self.api.create_branch(**self.repo, branch=self.revision or "", exist_ok=True)
        remote = RemoteFiles(self.api, self.repo, self.revision)
        self.contents.refuse(self.config.repo_id, remote)

    def send_next(self) -> bool:
        """Make the next commit of those that are still needed.

        Returns:
            False if none is.

        Raises:
            UserError: if the Hub leaves out what was sent.
        """
        if self.revision is None:
            self.revision = self._open_pull_request()
        operations = self._next_operations(RemoteFiles(self.api, self.repo, self.revision))
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
                commit_message=self.contents.title,
                revision=self.revision,
                create_pr=self.revision is None,
            )
            self.revision = self.revision or commit.pr_revision
            self.sent = paths
        return bool(paths)

    def url(self) -> str:
        """Return the address of what was sent to."""
        place = {"model": "", "dataset": "datasets/"}[self.contents.kind]
        address = f"{self.api.endpoint}/{place}{self.config.repo_id}"
        proposal = _PULL_REQUEST.fullmatch(self.revision or "")
        if proposal:
            return f"{address}/discussions/{proposal[1]}"
        return address if self.revision in (None, "main") else f"{address}/tree/{self.revision}"

    def _open_pull_request(self) -> str | None:
        """Return the revision of one that an earlier push of these contents opened."""
        found = self.api.get_repo_discussions(
            **self.repo,
            author=self.api.whoami()["name"],
            discussion_type="pull_request",
            discussion_status="open",
        )
        return next((x.git_reference for x in found if x.title == self.contents.title), None)

    def _next_operations(self, remote: RemoteFiles) -> Operations:
        """Plan the next commit from what is there; the last one makes the contents whole."""
        files, (entry, content) = self.contents.files, self.contents.entry
        card, shown = self._plan_card(remote)
        missing = [name for name, file in files.items() if not remote.has(name, file)]
        stale = [name for name in self.contents.stale(remote) if name not in shown]
        operations: Operations = [
            CommitOperationAdd(name, files[name].path) for name in missing[:FILES_PER_COMMIT]
        ]
        if len(missing) > FILES_PER_COMMIT:
            # Another entry would not fit these files: for a while there is none. What it alone
            # tells to be of an earlier push goes with it.
            stale += [entry] if entry in remote else []
            return operations + [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationDelete(name) for name in stale]
        operations += [
            CommitOperationAdd(name, picture.path)
            for name, picture in shown.items()
            if not remote.has(name, picture)
        ]
        for name, new in (("README.md", card), (entry, content)):
            if new is not None and not remote.has(name, new):
                operations.append(CommitOperationAdd(name, new))
        return operations

    def _plan_card(self, remote: RemoteFiles) -> tuple[bytes | None, dict[str, LocalFile]]:
        """Return the card to write, None where one that was edited is kept, and its pictures."""
        license, before = self.config.license, None
        self.card_is_kept = False
        if "README.md" in remote:
            before = remote.read("README.md").decode("utf-8", errors="replace")
            if is_unedited(before):
                license = license or RepoCard(before).data.get("license")
            else:
                self.card_is_kept = not self.config.overwrite_card
        card = self.contents.card(license)
        if before is None or before == card or not self.card_is_kept:
            self.card_is_kept = False
            return card.encode(), self.contents.pictures(card)
        return None, self.contents.pictures(before)


def open_repository(api: HfApi, config: PushConfig, kind: Kind) -> None:
    """Make a repository where it is missing, and make sure that this token may write to it.

    Args:
        api: asks the Hub.
        config: the name; whether it must be private.
        kind: of the repository.

    Raises:
        UserError: if it is public and must not be, or if a cache was to get the name of a model.
    """
    name = config.repo_id
    repo: dict[str, Any] = {"repo_id": name, "repo_type": kind}
    if api.repo_exists(**repo):
        if config.private and not api.repo_info(**repo).private:
            raise UserError(
                f"{name} is public on the Hub, and was to be private: make it private in its "
                "settings, or choose another name"
            )
    elif kind == "dataset" and api.repo_exists(name, repo_type="model"):
        raise UserError(f"{name} is a model on the Hub: choose another --repo_id for the cache")
    else:
        api.create_repo(**repo, private=True if config.private else None, exist_ok=True)
    # Anybody may propose.
    if not config.create_pr and not _PULL_REQUEST.fullmatch(config.revision or ""):
        api.auth_check(**repo, write=True)
