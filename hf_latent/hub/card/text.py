"""Values from files as text that is only text in a card: in Markdown, in tables, in numbers."""

import html
import json
import math
import re
from typing import Any

from markupsafe import Markup


def plain(value: Any) -> Markup:
    r"""Return a value so that it is only a text in Markdown, in any table.

    A card's templates pass every value through this, unless it is `Markup` already: what a template
    itself writes, or a value that it marks as `safe`.

    Args:
        value: whatever a file holds.

    Returns:
        One line; empty for None. Markdown's and HTML's own characters are escaped, like `\*`.
    """
    if isinstance(value, Markup):
        return value
    text = html.escape(one_line("" if value is None else value), quote=False)
    return Markup(re.sub(r"([\\`*\[\]|])", r"\\\1", text))


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


def whole(value: Any) -> int:
    """Return a positive whole number of a report; 0 for anything else."""
    return value if number(value, "d") and value > 0 else 0


def counted(count: Any, noun: str) -> str | None:
    """Write a number and its noun, like 1 image or 1,000 images.

    Args:
        count: whatever a report holds.
        noun: of one.

    Returns:
        None for what is no whole number.
    """
    shown = number(count, ",d")
    return shown and f"{shown} {noun}{'' if count == 1 else 's'}"


def interval_text(report: dict[str, Any]) -> str:
    """Return between which noise levels samples are guided, after a blank; empty: at all."""
    interval = report.get("guidance_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        return ""
    low, high = (number(x, "g") for x in interval)
    return Markup(f" between the noise levels {low} and {high}") if low and high else ""


def size_text(size: int) -> str:
    """Write a number of bytes in the unit that suits it."""
    unit, name = next(
        (u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u or u < 1e4
    )
    return f"{size / unit:.1f} {name}"


def duration_text(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if seconds < 120:
        return str(counted(max(1, round(seconds)), "second"))
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def code_block(text: str, language: str) -> Markup:
    """Write a block of code whose fence nothing inside can close.

    Args:
        text: of a file.
        language: for the colours.
    """
    longest = max([2, *map(len, re.findall(r"`+", text))])
    fence = "`" * (longest + 1)
    return Markup(f"{fence}{language}\n{text.strip()}\n{fence}")


def python_string(text: str) -> Markup:
    """Write a text as Python does: it cannot leave its quotes, and hides no character."""
    return Markup(json.dumps(text, ensure_ascii=not text.isprintable()))
