"""The curves of runs, as SVG that stands inside a page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from hf_latent.training.page.record import RunRecord
from hf_latent.training.validation.denoiser import NOISE_LEVEL_PARTS

# Seen on light and on dark; matplotlib's tab10.
COLOURS = [
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
]
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
INK = "#010203"  # stands for the page's colour of text
SIZE_INCHES = (4.0, 2.7)
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"font.size": 9, "axes.xmargin": 0.02, "lines.linewidth": 1.3, "svg.fonttype": "none"},
}
ABOVE: dict[str, Any] = {
    **{"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2},
    **{"frameon": False, "fontsize": 8, "columnspacing": 1, "handlelength": 1.7},
}
MAX_POINTS = 400
STUDENT_STEPS = 8  # of a student with more, the first ones are shown
MAX_MARKED_POINTS = 40
_LEVELS = [1000 * part // NOISE_LEVEL_PARTS for part in range(NOISE_LEVEL_PARTS + 1)]


@dataclass(frozen=True)
class Panel:
    """A plot of the page.

    Attributes:
        title: with the unit.
        curves: labels by the name of a logged figure.
        may_be_log: whether positive values of several magnitudes get a logarithmic scale.
    """

    title: str
    curves: dict[str, str]
    may_be_log: bool = False


PANELS = (
    Panel("Loss", {"train_loss": "training", "validation_loss": "held-out"}, may_be_log=True),
    Panel("Held-out PSNR in dB", {"psnr_db": "autoencoder", "bicubic_psnr_db": "bicubic"}),
    Panel("R2 of held-out luma and chroma", {"luma_r2": "luma", "chroma_r2": "chroma"}),
    Panel(
        "Held-out loss by timestep",
        {
            f"validation_loss_timesteps_{low}_to_{high}": f"{low} to {high}"
            for low, high in pairwise(_LEVELS)
        },
    ),
    Panel(
        "Held-out loss by the student's step",
        {f"validation_loss_step_{step}": f"step {step}" for step in range(1, STUDENT_STEPS + 1)},
    ),
    Panel("Held-out distance to the teacher's latents", {"distance_to_teacher": "student"}),
    Panel("Learning rate", {"learning_rate": "learning rate"}),
    Panel("Gradient norm", {"gradient_norm": "norm"}, may_be_log=True),
    Panel("Images a second", {"images_per_second": "images a second"}),
)


def choose_colour(number: int) -> str:
    """Return the colour of a run, or of a figure of a single run."""
    return COLOURS[number % len(COLOURS)]


def draw_curves(runs: Sequence[RunRecord]) -> list[tuple[str, Markup]]:
    """Draw the logged figures by step, all runs in one plot.

    Of several runs each has its colour. Each figure has its dashes.

    Returns:
        Title and SVG of each plot that has a point.
    """
    import matplotlib

    drawn = []
    for panel in PANELS:
        names = [name for name in panel.curves if any(run.curve(name)[0] for run in runs)]
        if names:
            # The salt tells the names of one plot's parts from those of another's.
            with matplotlib.rc_context(STYLE | {"svg.hashsalt": panel.title}):
                drawn.append((panel.title, _draw_panel(panel, names, runs)))
    return drawn


def _draw_panel(panel: Panel, names: list[str], runs: Sequence[RunRecord]) -> Markup:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure, described = Figure(figsize=SIZE_INCHES), []
    axes = figure.add_axes((0.14, 0.1, 0.8, 0.74))  # an automatic layout takes twice as long
    for number, name in enumerate(names):
        label, dashes = panel.curves[name], DASHES[number % len(DASHES)]
        for place, run in enumerate(runs):
            steps, values = (_thin(x) for x in run.curve(name))
            if len(values):
                colour = choose_colour(place if len(runs) > 1 else number)
                marker = "." if len(steps) <= MAX_MARKED_POINTS else None
                axes.plot(steps, values, color=colour, linestyle=dashes, marker=marker)
                described.append(f"{run.name}: {label} {values[0]:.4g} to {values[-1]:.4g}")
        colour = INK if len(runs) > 1 else choose_colour(number)
        axes.plot([], color=colour, linestyle=dashes, label=label)  # for the legend
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, color=INK)
    axes.locator_params(nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    heights = [x for name in names for run in runs for x in run.curve(name)[1]]
    if panel.may_be_log and 0 < 10 * min(heights) < max(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()  # they take longer than all else
    if len(names) > 1:
        axes.legend(ncols=3, **ABOVE)
    buffer, nothing = StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), f"{panel.title} by step. {'; '.join(described)}.")


def _thin(values: list[float]) -> np.ndarray:
    """Return values, or means of neighbours if there are more than can be seen."""
    if len(values) <= MAX_POINTS:
        return np.array(values, float)
    return np.array([part.mean() for part in np.array_split(np.array(values), MAX_POINTS)])


def _inline(svg: str, description: str) -> Markup:
    """Return an SVG file as part of a page, without the names that each of them has."""
    width, height = (round(72 * x) for x in SIZE_INCHES)
    inside = svg.partition("<svg ")[2].partition(">")[2]
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inside, flags=re.DOTALL)
    inside = re.sub(r' id="[\w.]+_\d+"', "", inside).replace("xlink:href", "href")
    start = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return start.format(width, height, description) + Markup(inside.replace(INK, "currentColor"))
