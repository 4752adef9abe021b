"""Format and escape the values of reports for use in a Markdown card."""

import html
import json
import math
import re
from typing import Any

from markupsafe import Markup


def plain(value: Any) -> Markup:
    r"""Escape a value for use in a Markdown card, tables included.

    The templates apply this to every value, except to `Markup`: text of the templates, and values
    that they mark as `safe`.

    Args:
        value: any value of a file.

    Returns:
        One line; empty for None. The characters of Markdown and HTML are escaped, like `\*`.
    """
    if isinstance(value, Markup):
        return value
    text = html.escape(one_line("" if value is None else value), quote=False)
    return Markup(re.sub(r"([\\`*\[\]|])", r"\\\1", text))


def one_line(value: Any) -> str:
    """Return a text without line breaks.

    Surrogates, which stand for bytes of file names that are not UTF-8, become `?`: UTF-8 has none.
    """
    return " ".join(str(value).encode(errors="replace").decode().split())


def number(value: Any, form: str) -> str | None:
    """Format a number.

    Args:
        value: any value of a report.
        form: as in `format`; with d, only int is a number.

    Returns:
        None if the value is no finite number, so it was not measured.
    """
    if form.endswith("d") and not isinstance(value, int):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return format(value, form)


def whole(value: Any) -> int:
    """Return a positive int of a report; 0 for anything else."""
    return value if number(value, "d") and value > 0 else 0


def counted(count: Any, noun: str) -> str | None:
    """Format a number and its noun, like 1 image or 1,000 images; None if it is no int."""
    shown = number(count, ",d")
    return shown and f"{shown} {noun}{'' if count == 1 else 's'}"


def interval_text(report: dict[str, Any]) -> str:
    """Return a space and the noise levels at which samples are guided; empty: at all levels."""
    interval = report.get("guidance_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        return ""
    low, high = (number(x, "g") for x in interval)
    return Markup(f" between the noise levels {low} and {high}") if low and high else ""


def duration_text(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120:
        return str(counted(max(1, round(seconds)), "second"))
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def code_block(text: str, language: str) -> Markup:
    """Return a Markdown block of code, with a fence longer than any in the text."""
    longest = max([2, *map(len, re.findall(r"`+", text))])
    fence = "`" * (longest + 1)
    return Markup(f"{fence}{language}\n{text.strip()}\n{fence}")


def python_string(text: str) -> Markup:
    """Return a Python string literal; unprintable characters are escaped."""
    return Markup(json.dumps(text, ensure_ascii=not text.isprintable()))
