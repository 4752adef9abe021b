"""Keep the progress bars of the datasets library out of a command's output."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the progress bars of `datasets` inside the block; afterwards they are as before."""
    were_shown = not datasets.are_progress_bars_disabled()
    if were_shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()
