"""What the package says to the user: Python logging, printed line by line, and progress bars."""

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # `hf-latent --version` imports nothing that must be installed
    from tqdm import tqdm

Verbosity = Literal["debug", "info", "warning", "error"]
SECONDS_BETWEEN_LINES = 60.0  # of a progress bar that is no bar


class MessageHandler(logging.Handler):
    """Prints messages above any progress bar: warnings to stderr, others to stdout.

    Of several processes of a launch only the first prints, except errors. A closed output does not
    end a run: its messages are dropped.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        from tqdm import tqdm

        if os.environ.get("RANK", "0") != "0" and record.levelno < logging.ERROR:
            return
        file = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        prefix = f"{record.levelname.lower()}: " if file is sys.stderr else ""
        try:
            tqdm.write(f"{prefix}{record.getMessage()}", file=file)
            file.flush()
        except OSError:
            pass


def start_messages() -> None:
    """Print what the package says, also from Python; `set_verbosity` changes how much.

    Messages do not reach the handlers of the root logger, which would print them again.
    """
    logger = logging.getLogger("hf_latent")
    if not logger.handlers:
        logger.addHandler(MessageHandler())
        logger.propagate = False
        logger.setLevel(logging.INFO)


def set_verbosity(verbosity: Verbosity) -> None:
    """Print messages of this level and above."""
    logging.getLogger("hf_latent").setLevel(verbosity.upper())


class _ProgressLines:
    """A stream for tqdm that writes each state of a bar to stderr as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():  # a bar is also cleared, with blanks
            try:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            except OSError:  # a closed output does not end a run
                pass


def progress_bar(**settings: Any) -> "tqdm":
    """Return tqdm's bar; if stderr is no terminal, it prints a line a minute instead.

    Work of less than a minute then prints nothing.

    Args:
        settings: tqdm's.
    """
    from tqdm.auto import tqdm  # a widget in a notebook

    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and ipython.get_ipython() is not None
    if not (in_notebook or sys.stderr.isatty()):
        seconds = SECONDS_BETWEEN_LINES
        settings |= {"file": _ProgressLines(), "mininterval": seconds, "delay": seconds}
        settings |= {"miniters": 0}  # look at the time at each update
    return tqdm(**settings)
