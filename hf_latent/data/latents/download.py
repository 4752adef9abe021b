"""Latent caches in data set repositories on the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import OfflineModeIsEnabled

from hf_latent.errors import UserError

CACHE_FILES = ("manifest.json", "train-*.safetensors", "validation-*.safetensors")


def download_cache(
    repo_id: str, revision: str | None, files: tuple[str, ...] = CACHE_FILES
) -> Path:
    """Download some files of a latent cache, unless they are here already.

    Args:
        repo_id: of the data set repository.
        revision: of it.
        files: patterns of names.

    Returns:
        The folder that they are in.

    Raises:
        UserError: if they cannot be had.
    """
    with _failure_in_one_line(repo_id):
        folder = huggingface_hub.snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=list(files)
        )
    return Path(folder)


def download_manifest(repo_id: str, revision: str | None) -> Path:
    """Download manifest.json of a latent cache, unless it is here already; return its path.

    Raises:
        UserError: if it cannot be had.
    """
    with _failure_in_one_line(repo_id):
        path = huggingface_hub.hf_hub_download(
            repo_id, "manifest.json", repo_type="dataset", revision=revision
        )
    return Path(path)


def pin_revision(source: str, revision: str | None) -> str | None:
    """Return the commit that a revision stands for now, so that a push in between changes nothing.

    Args:
        source: a folder, or the id of a data set repository.
        revision: of the repository; None: main.

    Returns:
        The commit; of a folder, and without a network, the revision as it is.

    Raises:
        UserError: if there is no such folder, repository or revision.
    """
    if Path(source).is_dir():
        return revision
    with _failure_in_one_line(source):
        try:
            return huggingface_hub.HfApi().dataset_info(source, revision=revision).sha
        except OfflineModeIsEnabled:
            return revision  # what was downloaded before may do


@contextmanager
def _failure_in_one_line(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what the Hub's client raises has no common class
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"the latent cache {repo_id} is no folder here, and not to be had from the Hub "
            f"({type(error).__name__}: {cause}): correct the name, log in (hf auth login), or try "
            "again when the Hub can be reached"
        ) from error
