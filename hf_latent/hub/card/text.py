"""Values from files as text that is only text in a card: in Markdown, in tables, in numbers."""

import html
import math
import re
from typing import Any


def plain(value: Any) -> str | None:
    """Return a text so that it is only a text in Markdown, in any table.

    Args:
        value: whatever a file holds.

    Returns:
        One line; None for None.
    """
    if value is None:
        return None
    text = html.escape(one_line(value), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def one_line(value: Any) -> str:
    """Return a text without line breaks, for metadata.

    Names of files that are not UTF-8 hold surrogates, which no file in UTF-8 can: they become ?.
    """
    return " ".join(str(value).encode(errors="replace").decode().split())


def number(value: Any, form: str) -> str | None:
    """Write a number.

    Args:
        value: whatever a report holds.
        form: as of `format`; with d for whole numbers only.

    Returns:
        None for what is no such finite number, and so was not measured.
    """
    if form.endswith("d") and not isinstance(value, int):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return format(value, form)


def size_text(size: int) -> str:
    """Write a number of bytes in the unit that suits it."""
    unit, name = next(
        (u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u or u < 1e4
    )
    return f"{size / unit:.1f} {name}"


def duration_text(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if seconds < 120:
        return counted(max(1, round(seconds)), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def counted(count: int, noun: str) -> str:
    """Write a number and its noun, like 1 image or 1,000 images."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def code_block(text: str, language: str) -> str:
    """Write a block of code whose fence nothing inside can close.

    Args:
        text: of a file.
        language: for the colours.
    """
    longest = max([2, *map(len, re.findall(r"`+", text))])
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"
