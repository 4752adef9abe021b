"""Requests to the Hub: repeated while their failure may pass, else told in one line.

huggingface_hub repeats most requests by itself, but neither a commit nor the making of a
repository, whose answer may be lost after the deed: so a step that is repeated here must look at
what the Hub has before it does anything.
"""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_latent.errors import UserError

Result = TypeVar("Result")
WAITS_SECONDS = (1, 2, 4)
_MAY_PASS = (408, 429, 500, 502, 503, 504)
_NEVER_SENT = ("LocalProtocolError", "UnsupportedProtocol")  # httpx: the request is malformed


def insist(step: Callable[[], Result], repo_id: str) -> Result:
    """Do something on the Hub, again if it fails for a reason that may pass.

    Args:
        step: what to do; safe to repeat.
        repo_id: of the repository, for the messages.

    Returns:
        What the step returns.

    Raises:
        UserError: in one line, without the token, when it keeps failing or is refused.
    """
    for wait in (*WAITS_SECONDS, None):
        try:
            return step()
        except UserError:
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else None
            reason = cause or error  # an upload's failure is wrapped in a RuntimeError
            if wait is None or not may_pass(reason):
                raise UserError(without_token(_explain(reason, repo_id))) from None
            time.sleep(wait)
    raise AssertionError("the last round returns or raises")


def may_pass(error: BaseException) -> bool:
    """Tell whether a failure may be gone a moment later.

    Args:
        error: what huggingface_hub raised.

    Returns:
        True for a broken connection and for a server in trouble; False for a refusal.
    """
    if isinstance(error, HfHubHTTPError):
        return _status(error) in _MAY_PASS
    if isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in _NEVER_SENT:
        return False
    # Where JSON was expected, a proxy's page about an error is not JSON.
    return isinstance(error, HTTPError | ConnectionError | TimeoutError | json.JSONDecodeError)


def without_token(text: str) -> str:
    """Take the user's token out of a text.

    Args:
        text: a message that may quote a request's headers.

    Returns:
        The text with `<token>` in its place.
    """
    tokens = [os.environ.get("HF_TOKEN", "").strip()]
    with suppress(HTTPError, OSError, ValueError):
        tokens.append(huggingface_hub.get_token() or "")
    for token in filter(None, tokens):
        text = text.replace(token, "<token>")
    return re.sub(r"Bearer [^'\"]+", "Bearer <token>", text)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(error: BaseException, repo_id: str) -> str:
    """Say what went wrong, and how to mend it."""
    status = _status(error)
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token for the Hub: run hf auth login, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent: unset it"
    if isinstance(error, UnicodeError) or type(error).__name__ == "LocalProtocolError":
        return "the token for the Hub has characters that no token has: run hf auth login again"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such --revision on the Hub ({said})"
    if status == 401 and re.search("Invalid (credentials|user token)", said):
        return "the Hub does not know this token: run hf auth login, or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return f"the Hub has no {repo_id} that this token may see: look at the name and the token"
    if status == 403:
        return f"this token may not write to {repo_id} ({said}): use one that may"
    if may_pass(error):
        code = f"{status}: " if status else ""
        return (
            f"the Hub cannot be reached or is in trouble ({code}{said}); "
            "the same command goes on where it stopped"
        )
    if status or isinstance(error, ValueError):
        return f"the Hub refused {repo_id}: {said}"
    return f"sending to {repo_id} failed ({said}); the same command goes on where it stopped"
