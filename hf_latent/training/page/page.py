"""The page of one training or of several: one HTML file, which needs no other file."""

import base64
import hashlib
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_latent.evaluation.report_text import picture_address, render_template
from hf_latent.output import write_text
from hf_latent.training.finish.reports import warn_of_failure
from hf_latent.training.page.curves import choose_colour, draw_curves
from hf_latent.training.page.record import RunRecord, read_run
from hf_latent.training.run.log import read_lines
from hf_latent.training.validation.diagnosis import diagnose

logger = logging.getLogger(__name__)

PAGE = "report.html"
# Limits of the pictures on a page. Three are always shown: the first, a middle one and the last.
MAX_PICTURES = 48
MAX_PICTURE_BYTES = 24 * 2**20
SCRIPT = """
for (const input of document.querySelectorAll("input")) {
  const shown = input.closest("section").querySelectorAll("img");
  input.oninput = () => {
    shown.forEach((image, i) => { image.hidden = i != input.value; });
    const step = shown[input.value].dataset.step;
    input.closest("section").querySelector("output").value = step;
    input.setAttribute("aria-valuetext", step);
  };
  input.oninput();
}
"""


def conclude_validation(output_dir: Path) -> None:
    """Say what the last logged validation shows, and write the run's page.

    The first process calls it. A training goes on if the page cannot be made.
    """
    with warn_of_failure("the diagnosis"):
        lines = read_lines(output_dir)
        for level, line in diagnose(lines):
            logger.log(level, f"step {lines[-1]['step']}: {line}")
    write_page(output_dir)


def write_page(output_dir: Path) -> None:
    """Write the page of a run into its folder, or warn that it could not be made."""
    page = output_dir / PAGE
    with warn_of_failure(f"the page {page}"):
        write_text(page, render_page([read_run(output_dir, output_dir.resolve().name)]))


def render_page(runs: Sequence[RunRecord]) -> str:
    """Return the HTML of one run or of several side by side.

    It asks for nothing from the network: pictures and plots are part of it, and its policy allows
    no address and no script but its own.
    """
    settings = [run.settings() for run in runs]
    changed = [run.changed_settings() for run in runs]
    if len(runs) > 1:
        names = _union(settings)
        differing = [x for x in names if len({str(own.get(x)) for own in settings}) > 1]
    report = {
        "title": ", ".join(run.name for run in runs),
        "names": [run.name for run in runs],
        "made_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "runs": [_describe(run, i, len(runs)) for i, run in enumerate(runs)],
        "curves": draw_curves(runs),
        "figures": _rows([run.figures() for run in runs]),
        "settings": _rows(settings, differing) if len(runs) > 1 else _rows(changed),
        "script": Markup(SCRIPT),
        "script_sha256": base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    }
    return render_template(Path(__file__).with_suffix(".html"), report)


def _describe(run: RunRecord, place: int, of: int) -> dict[str, Any]:
    """Return what the template shows of one run."""
    steps = list(run.pictures)
    sizes = [path.stat().st_size for path in run.pictures.values()]
    fitting = MAX_PICTURE_BYTES // of // max(sizes, default=1)
    count = max(3, min(MAX_PICTURES, fitting))
    shown = sorted({round(i * (len(steps) - 1) / (count - 1)) for i in range(count) if steps})
    names = _union(run.validations)
    return {
        "record": run,
        "colour": choose_colour(place),
        "diagnosis": [(level >= logging.WARNING, line) for level, line in diagnose(run.lines)],
        "pictures": [(steps[i], picture_address(run.pictures[steps[i]])) for i in shown],
        "validations": (names, [[_text(x.get(name)) for name in names] for x in run.validations]),
        "settings": _rows([run.settings()]),
    }


def _union(dicts: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of all dicts, in their order."""
    return list(dict.fromkeys(name for values in dicts for name in values))


def _rows(columns: Sequence[dict[str, Any]], names: list[str] | None = None) -> list[list[str]]:
    """Return the rows of a table: a name, then its value in each column as text."""
    names = _union(columns) if names is None else names
    return [[name, *(_text(column.get(name)) for column in columns)] for name in names]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:,}" if isinstance(value, int) else format(value, ".5g" * isinstance(value, float))
    )
