"""Reports for people: Markdown templates that are filled from the content of report.json alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from hf_latent.output import read_json, write_json, write_text


def format_number(value: float | None, form: str) -> str:
    """Write a number.

    Args:
        value: None is what report.json has for a number that is not finite.
        form: as of `str.format`, such as `{:.2f} dB`.

    Returns:
        The text; a dash for what is no finite number.
    """
    return "-" if value is None or not math.isfinite(value) else form.format(value)


def render_template(template: Path, report: dict[str, Any], **others: Any) -> str:
    """Write a report.

    Args:
        template: a Jinja template of Markdown; `report` is its one variable, and it may write
            numbers with the filter `number`.
        report: the content of report.json.
        others: more variables.

    Returns:
        Markdown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = format_number
    return environment.get_template(template.name).render(report=report, **others)


def write_report(
    output_dir: Path, report: dict[str, Any], render: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Write report.json, and report.md from what stands there.

    Args:
        output_dir: the folder of both.
        report: the content of report.json.
        render: from that content to Markdown.

    Returns:
        The report as it can be read again.
    """
    write_json(output_dir / "report.json", report)
    report = read_json(output_dir / "report.json")
    write_text(output_dir / "report.md", render(report))
    return report
