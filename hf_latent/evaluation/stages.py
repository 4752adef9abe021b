"""The stages of a measuring command: each with a bar that tells the time left, and timed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


class Stages:
    """Counts, shows and times the stages of a command.

    Args:
        count: how many there will be.
    """

    def __init__(self, count: int):
        """Start before the first."""
        self.count = count
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, shown: bool = True) -> Iterator[tqdm]:
        """Time what happens inside.

        Args:
            name: in words; `NAME_seconds` with underscores is its key in the report.
            total: how many images it goes through; None: it cannot be told.
            shown: show its bar; one that is over at once, or ends in an error's line, needs none.

        Yields:
            The bar; call `update(images)` on it.
        """
        start = time.perf_counter()
        number = len(self._seconds) + 1
        title = f"{number}/{self.count} {name}"
        with tqdm(total=total, desc=title, unit=" images", disable=not shown) as bar:
            yield bar
        self._seconds[name.replace(" ", "_")] = time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """Return each stage's seconds and their sum, by the report's keys."""
        seconds = {f"{name}_seconds": value for name, value in self._seconds.items()}
        return seconds | {"total_seconds": sum(seconds.values())}
