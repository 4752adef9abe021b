"""Latent caches in data set repositories on the Hub."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import OfflineModeIsEnabled

from hf_latent.errors import UserError, cause_of

CACHE_FILES = ("manifest.json", "train-*.safetensors", "validation-*.safetensors")


def download_cache(
    repo_id: str, revision: str | None, files: tuple[str, ...] = CACHE_FILES
) -> Path:
    """Download files of a latent cache that are not on the disk yet; return their folder.

    Args:
        repo_id: of the data set repository.
        revision: of the repository.
        files: patterns of file names.

    Raises:
        UserError: if the Hub does not give them.
    """
    with cache_errors_in_one_line(repo_id):
        folder = huggingface_hub.snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=list(files)
        )
    return Path(folder)


def pin_revision(source: str, revision: str | None) -> str | None:
    """Return the commit of a revision, so that later pushes do not change what a run reads.

    Args:
        source: a folder, or the id of a data set repository.
        revision: of the repository; None: main. Unchanged for a folder, or in offline mode.

    Raises:
        UserError: if there is no such folder, repository or revision.
    """
    if Path(source).is_dir():
        return revision
    with cache_errors_in_one_line(source):
        try:
            return huggingface_hub.HfApi().dataset_info(source, revision=revision).sha
        except OfflineModeIsEnabled:
            return revision  # an earlier download may hold it


def cache_errors_in_one_line(repo_id: str) -> AbstractContextManager[None]:
    """Turn every error of the Hub's client into a `UserError` about a latent cache."""
    return hub_errors_in_one_line(
        f"there is no folder {repo_id}, and the Hub does not give a latent cache of that name",
        "correct the name, log in (hf auth login), or try again when the Hub can be reached",
    )


@contextmanager
def hub_errors_in_one_line(failure: str, advice: str) -> Iterator[None]:
    """Turn every error of the Hub's client into a `UserError` with its cause.

    Args:
        failure: what failed, before the cause.
        advice: how to mend it, after the cause.
    """
    try:
        yield
    except Exception as error:  # the client's errors have no common class
        raise UserError(f"{failure} ({cause_of(error)}): {advice}") from error
