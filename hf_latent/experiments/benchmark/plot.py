"""The benchmarks' plots: panels of lines, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
        label: in the legend.
        x: one place for each point.
        y: one value for each point.
        style: matplotlib's settings of the line.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: dict[str, Any] = field(default_factory=dict)


def draw_panels(panels: dict[str, list[Line]], x_label: str, ticks: list[int], path: Path) -> None:
    """Draw panels with the same lines; all axes are logarithmic.

    Args:
        panels: the lines by the panel's title. The legend names those of the first panel.
        x_label: of every panel.
        ticks: the places that the horizontal axes name.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, StrMethodFormatter

    figure = Figure(figsize=(3.7 * len(panels), 4.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels))
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for line in lines:
            axes.plot(line.x, line.y, label=line.label, **{"marker": "o", **line.style})
        axes.set(xscale="log", yscale="log", xlabel=x_label, title=title)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
        # Minor values are named too if there are few decades.
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.grid(alpha=0.3)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, format="png", dpi=110)
