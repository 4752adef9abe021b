"""Hide the progress bars of the datasets library."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the progress bars of `datasets` in the block, and restore them after it."""
    were_shown = not datasets.are_progress_bars_disabled()
    if were_shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()
