"""report.md of an inspection: the template beside this file, filled from report.json."""

from pathlib import Path
from typing import Any

from hf_latent.evaluation.report_text import render_template


def render_report(report: dict[str, Any]) -> str:
    """Return the Markdown of a report, from the content of report.json."""
    correlations = [
        abs(value or 0.0)
        for i, row in enumerate(report["latent_correlation"])
        for j, value in enumerate(row)
        if i != j
    ]
    largest = max(correlations, default=0.0)
    template = Path(__file__).with_suffix(".md")
    return render_template(template, report, largest_correlation=largest)
