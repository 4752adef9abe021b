"""What the package says to the user: Python logging, printed line by line."""

import logging
import os
import sys
from typing import Literal

from tqdm import tqdm

Verbosity = Literal["debug", "info", "warning", "error"]


class MessageHandler(logging.Handler):
    """Prints messages above any progress bar: warnings to stderr, others to stdout.

    Of several processes of a launch only the first prints, except errors. A closed output does not
    end a run: its messages are dropped.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
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
