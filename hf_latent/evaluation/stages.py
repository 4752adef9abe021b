"""The stages of a measuring command: each has a progress bar and is timed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from hf_latent.messages import progress_bar


class Stages:
    """Counts, shows and times the stages of a command."""

    def __init__(self, count: int):
        """Start before the first of `count` stages."""
        self.count = count
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, shown: bool = True) -> Iterator[tqdm]:
        """Time the code inside.

        Args:
            name: in words; `NAME_seconds` with underscores is its key in the report.
            total: the number of images; None: unknown.
            shown: show a bar. A stage that is short, or may end in an error's line, needs none.

        Yields:
            The bar; call `update(images)` on it.
        """
        start = time.perf_counter()
        title = f"{len(self._seconds) + 1}/{self.count} {name}"
        with progress_bar(total=total, desc=title, unit=" images", disable=not shown) as bar:
            yield bar
        self._seconds[name.replace(" ", "_")] = time.perf_counter() - start

    def figures(self) -> dict[str, float]:
        """Return each stage's seconds and their sum, by the report's keys."""
        seconds = {f"{name}_seconds": value for name, value in self._seconds.items()}
        return seconds | {"total_seconds": sum(seconds.values())}
