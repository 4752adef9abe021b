"""A repository on the Hub: create it, read its files, explain its errors in one line.

huggingface_hub retries most failed requests, but neither a commit nor the requests that create or
look up a repository. So `retry` repeats a whole step.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_latent.errors import UserError

Result = TypeVar("Result")
PULL_REQUEST = re.compile(r"refs/pr/(\d+)")
WAITS_SECONDS = (1, 2, 4, 8, 8)  # as in huggingface_hub
_TEMPORARY = (408, 429, 500, 502, 503, 504)
_BAD_TOKEN = ("LocalProtocolError", "UnicodeEncodeError")  # a header cannot hold it


class RemoteFiles:
    """The files of one revision of a repository, as the Hub has them now.

    Args:
        repo: `repo_id` and `repo_type`.
        revision: a branch, a pull request or a commit; None: main.

    Attributes:
        commit: hash of the revision's last commit.
        names: of all files.
    """

    def __init__(self, api: HfApi, repo: dict[str, Any], revision: str | None):
        """List them."""
        self._api = api
        self.commit = api.repo_info(**repo, revision=revision).sha
        self._where: dict[str, Any] = {**repo, "revision": self.commit}
        self.names = set(api.list_repo_files(**self._where))

    def __contains__(self, name: object) -> bool:
        """Return whether the revision has a file of this name."""
        return name in self.names

    def read(self, name: str) -> bytes:
        """Download a small file, not into the cache of models; empty if there is none."""
        if name not in self:
            return b""
        with tempfile.TemporaryDirectory() as folder:
            path = self._api.hf_hub_download(**self._where, filename=name, local_dir=folder)
            return Path(path).read_bytes()

    def read_json(self, name: str) -> dict[str, Any]:
        """Download a JSON object; empty if it is missing or cannot be read."""
        try:
            values = json.loads(self.read(name))
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


def check_repo_id(name: str, flag: str, account: str | None = None) -> None:
    """Check that a repository on the Hub can have this name.

    Args:
        name: `user/name`.
        flag: where the name comes from, for the message.
        account: the user of a name without one; None: a name needs one.

    Raises:
        UserError: if the name is malformed.
    """
    whole = f"{account}/{name}" if account and "/" not in name else name
    try:
        validate_repo_id(whole)
    except HFValidationError:
        whole = ""
    if "/" not in whole:
        raise UserError(f"--{flag} {name} is not of the form user/name")


def open_repository(
    api: HfApi, repo_id: str, repo_type: str, private: bool, revision: str | None = "main"
) -> None:
    """Create a repository if it is missing, and check that this token may write to it.

    Args:
        repo_id: `user/name`.
        repo_type: model or dataset.
        private: whether the repository must be private.
        revision: a branch, which is created if it is missing, or a pull request; None: a new pull
            request.

    Raises:
        UserError: if a public repository must be private, or a cache would get a model's name.
    """
    repo: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type}
    if repo_type == "dataset" and not api.repo_exists(**repo) and api.repo_exists(repo_id):
        raise UserError(f"{repo_id} is a model on the Hub: choose another --repo_id for the cache")
    api.create_repo(**repo, private=private or None, exist_ok=True)
    if private and not api.repo_info(**repo).private:
        raise UserError(
            f"{repo_id} is public on the Hub, but must be private: make it private in its "
            "settings, or choose another name"
        )
    if revision is None or PULL_REQUEST.fullmatch(revision):
        return  # anybody may open a pull request
    api.auth_check(**repo, write=True)
    if revision != "main":
        api.create_branch(**repo, branch=revision, exist_ok=True)


def retry(
    step: Callable[[], Result], repo_id: str, waits: Sequence[float] = WAITS_SECONDS
) -> Result:
    """Call a step on the Hub, again if a temporary failure stops it.

    Args:
        step: must be safe to repeat: it looks up what the Hub has.
        repo_id: of the repository, for the messages.
        waits: seconds to wait before each further attempt.

    Returns:
        What the step returns.

    Raises:
        UserError: in one line, without the token, if the step keeps failing or is refused.
    """
    for wait in (*waits, None):
        try:
            return step()
        except UserError:
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            # huggingface_hub wraps the failure of an upload in a RuntimeError.
            reason = (isinstance(error, RuntimeError) and error.__cause__) or error
            if wait is None or not _is_temporary(reason):
                raise UserError(_explain(reason, repo_id)) from None
            time.sleep(wait)
    raise AssertionError("the last round returns or raises")


def _is_temporary(error: BaseException) -> bool:
    """Return whether a failure is a broken connection or a failing server, not a refusal."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TEMPORARY
    if isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in _BAD_TOKEN:
        return False
    # A proxy's error page is no JSON.
    return isinstance(error, HTTPError | ConnectionError | TimeoutError | json.JSONDecodeError)


def _explain(error: BaseException, repo_id: str) -> str:
    """Return what went wrong and how to mend it."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token for the Hub: run hf auth login, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent: unset it"
    if type(error).__name__ in _BAD_TOKEN:
        return "the token for the Hub has invalid characters: run hf auth login again"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such --revision on the Hub ({said}): name one that it has"
    if status == 401 and re.search("Invalid (credentials|user token)", said):
        return "the Hub does not know this token: run hf auth login, or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return f"the Hub has no {repo_id} that this token may see: check the name and the token"
    if status == 403:
        return f"this token may not write to {repo_id} ({said}): use a token that may"
    if _is_temporary(error):
        code = f"{status}: " if status else ""
        return (
            f"the Hub cannot be reached or is in trouble ({code}{said}): run the same command later"
        )
    if status or isinstance(error, ValueError):
        return f"the Hub refused {repo_id}: {said}"
    return f"sending to {repo_id} failed ({said}): run the same command later"
