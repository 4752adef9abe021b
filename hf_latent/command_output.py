"""How a command ends: an error is one line, and a closed output is no error."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hf_latent.errors import SharedError, UserError
from hf_latent.messages import start_messages

logger = logging.getLogger(__name__)

_NO_MEMORY = re.compile("allocate memory|out of memory|size calculation overflowed")


class _LastingStream:
    """A text stream that discards all text once it cannot be written any more."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._or_discard(self._stream.write, text)

    def flush(self) -> None:
        self._or_discard(self._stream.flush)

    def _or_discard(self, function: Callable[..., Any], *arguments: str) -> Any:
        try:
            return function(*arguments)
        except OSError:
            # What the stream has buffered goes there too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return function(*arguments)


@contextmanager
def command_output() -> Iterator[None]:
    """Run a command: its errors become one line, and a closed output does not end it.

    A program that reads the output through a pipe, like `head`, may end first. Messages, progress
    bars and results are then discarded.

    Raises:
        SystemExit: with status 2 after a user error, 130 after Ctrl-C.
    """
    start_messages()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _LastingStream(stream) if stream else open(os.devnull, "w")  # noqa: SIM115
        for stream in before
    )
    try:
        yield
    except KeyboardInterrupt:
        logger.error("interrupted")
        raise SystemExit(130) from None
    except (UserError, OSError) as error:
        if os.environ.get("RANK", "0") == "0" or not isinstance(error, SharedError):
            logger.error(" ".join(str(error).split()))
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError.
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        cause = " ".join(str(error).split())[:200]
        logger.error(f"not enough memory, choose smaller sizes ({cause})")
        raise SystemExit(2) from None
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
