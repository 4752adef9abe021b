"""Send a model or a latent cache, with its card, to the Hub: `hf-latent push`.

One commit sends everything, so the Hub has all of it or nothing. Files that the Hub already has are
not sent again, so the same command resumes a killed push.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard

from hf_latent.command import Settings
from hf_latent.errors import UserError
from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.contents import CacheContents, ModelContents, check_remote_class, whole_model
from hf_latent.hub.remote import (
    PULL_REQUEST,
    RemoteFiles,
    check_repo_id,
    open_repository,
    retry,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PushConfig(Settings):
    """Send a model or a latent cache, with its card, to the Hub.

    Attributes:
        model: The folder of a pipeline, of an autoencoder, or of the run that trained one; or the
            name of a released model. The push sends configurations, safetensors, code, figures, the
            card and its pictures, and nothing else.
        cache: The folder of a latent cache, in place of a model. The push sends its shards and
            manifest.json, and nothing else, to a data set.
        repo_id: The repository on the Hub, user/name. It is created if it is missing.
        private: Create the repository as private; refuse an existing public one.
        revision: The branch to send to, created if it is missing, or a pull request like refs/pr/1.
            By default main.
        create_pr: Open a pull request. The same command resumes the same pull request.
        license: The licence of the model, or of the cache's images, by the Hub's name, like mit or
            cc-by-4.0. By default the card keeps the licence that it names on the Hub.
        overwrite_card: Replace a README.md that was edited on the Hub; otherwise it is kept.
        checkpoints: Send the run's checkpoints too; `--model` is then the run's folder. They hold
            the run's settings, with paths of this machine. Checkpoints of other steps on the Hub
            stay.
    """

    repo_id: str
    model: str | None = None
    cache: str | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    license: str | None = None
    overwrite_card: bool = False
    checkpoints: bool = False

    def __post_init__(self) -> None:
        """Check the combination of flags."""
        super().__post_init__()
        if (self.model is None) == (self.cache is None):
            raise UserError("pass either --model or --cache")
        check_repo_id(self.repo_id, "repo_id")
        if self.create_pr and self.revision:
            raise UserError("--create_pr creates its own revision: leave --revision out")
        if self.checkpoints and self.cache:
            raise UserError("--checkpoints go with a --model, not with a --cache")


def push(config: PushConfig) -> str:
    """Check that a model or cache is whole, send what the Hub lacks, and print the address.

    Returns:
        The address of the repository, of the branch or of the pull request.

    Raises:
        UserError: if the model or cache is not whole, or the Hub cannot be reached or refuses.
    """
    if config.model is None:
        return _push(config, CacheContents(Path(config.cache or ""), config.repo_id))
    run = Path(config.model) if config.checkpoints else None
    with whole_model(config.model) as folder:
        contents = ModelContents(folder, config.repo_id, config.license, run)
        if contents.left_out:
            logger.warning(f"not sent, not part of the model: {contents.left_out}")
        return _push(config, contents)


def _push(config: PushConfig, contents: ModelContents | CacheContents) -> str:
    """Send what the Hub lacks, print the address and return it."""
    revision, is_sent, is_card_kept = retry(partial(_send, config, contents), config.repo_id)
    if is_card_kept:
        logger.warning(
            f"the README.md of {config.repo_id} was edited and is kept; "
            "--overwrite_card true replaces it"
        )
    url = f"{HfApi().endpoint}/{'datasets/' * (contents.kind == 'dataset')}{config.repo_id}"
    proposal = PULL_REQUEST.fullmatch(revision)
    if proposal:
        url += f"/discussions/{proposal[1]}"
    elif revision != "main":
        url += f"/tree/{revision}"
    print(f"{contents}, {'sent' if is_sent else 'already there'}: {url}")
    return url


def _send(config: PushConfig, contents: ModelContents | CacheContents) -> tuple[str, bool, bool]:
    """Send what the Hub lacks.

    Returns:
        The revision, whether anything was sent, and whether an edited card was kept.
    """
    api = HfApi(token=True)  # a token is required
    repo: dict[str, Any] = {"repo_id": config.repo_id, "repo_type": contents.kind}
    revision = None if config.create_pr else config.revision or "main"
    RepoCard(contents.card(config.license)).validate(contents.kind)
    open_repository(api, **repo, private=config.private, revision=revision)
    revision = revision or _find_pull_request(api, repo, contents.title)
    remote = RemoteFiles(api, repo, revision)
    if isinstance(contents, ModelContents):
        check_remote_class(config.repo_id, remote, contents.class_name)
    card, is_card_kept = _choose_card(config, contents, remote)
    pictures = contents.pictures(card.decode(errors="replace"))
    sent: dict[str, Path | bytes] = {**contents.files, **pictures, "README.md": card}
    stale = [name for name in contents.stale(remote) if name not in pictures]
    commit = api.create_commit(  # creates none if no file changed
        **repo,
        operations=[
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, content) for name, content in sent.items()),
        ],
        commit_message=contents.title,
        revision=revision,
        create_pr=revision is None,
    )
    revision = revision or commit.pr_revision or "main"
    lacking = contents.files.keys() - RemoteFiles(api, repo, revision).names
    if lacking:
        raise UserError(
            f"{config.repo_id} still lacks {min(lacking)} after the push: a .gitignore there "
            "may exclude it, so remove that line"
        )
    return revision, commit.oid != remote.commit, is_card_kept


def _find_pull_request(api: HfApi, repo: dict[str, Any], title: str) -> str | None:
    """Return the revision of the open pull request with this title, if this user has one."""
    found = api.get_repo_discussions(
        **repo,
        author=api.whoami()["name"],
        discussion_type="pull_request",
        discussion_status="open",
    )
    return next((x.git_reference for x in found if x.title == title), None)


def _choose_card(
    config: PushConfig, contents: ModelContents | CacheContents, remote: RemoteFiles
) -> tuple[bytes, bool]:
    """Return the new README.md of the repository, and whether it is an edited one that is kept."""
    before = remote.read("README.md")
    text = before.decode(errors="replace")
    license, edited = config.license, bool(before) and not is_unedited(text)
    if before and not edited:
        license = license or RepoCard(text).data.get("license")
    card = contents.card(license).encode()
    is_kept = edited and before != card and not config.overwrite_card
    return before if is_kept else card, is_kept
