"""Reports for people: templates of Markdown and HTML, filled from the content of reports."""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hf_latent.output import read_json, write_json, write_text

STYLE = Path(__file__).with_name("report_style.css")


def format_number(value: float | None, form: str) -> str:
    """Return a number as text in a form such as `{:.2f} dB`, or a dash if None or not finite."""
    return "-" if value is None or not math.isfinite(value) else form.format(value)


def picture_address(picture: Path) -> str:
    """Return the content of a PNG file as an address, so that a page needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def render_template(template: Path, report: dict[str, Any], **others: Any) -> str:
    """Render a report as Markdown or HTML.

    Args:
        template: a Jinja template. It has the filter `number`, see `format_number`. If its name
            ends in .html, values are escaped, and `style` is the style of all pages.
        report: the content of report.json, the template's variable `report`.
        others: more variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=jinja2.select_autoescape(["html"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = format_number
    environment.globals["style"] = Markup(STYLE.read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(report=report, **others)


def write_report(
    output_dir: Path, report: dict[str, Any], render: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Write report.json, read it again, and write report.md from it.

    Returns:
        The report as read from report.json.
    """
    write_json(output_dir / "report.json", report)
    report = read_json(output_dir / "report.json")
    write_text(output_dir / "report.md", render(report))
    return report
