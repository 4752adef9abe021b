"""The plot of `bench space`: how the costs of pixels and of latents grow with the image."""

from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

COLOURS = {"pixels": "tab:red", "latents": "tab:blue"}
PANELS = {
    "step_seconds": "seconds of a denoising step",
    "training_step_seconds": "seconds of a training step",
    "training_step_activations_mb": "activations of a training step, MB",
}
LINES = ("-", "--")


def draw_costs(points: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds and memory over the size of the images, both axes logarithmic.

    Args:
        points: of bench.json.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    all_axes = figure.subplots(1, len(PANELS))
    denoisers = list(dict.fromkeys(point["denoiser"] for point in points))
    for axes, (key, title) in zip(all_axes, PANELS.items(), strict=True):
        for denoiser, line in zip(denoisers, cycle(LINES), strict=False):
            for space, colour in COLOURS.items():
                same = [x for x in points if x["denoiser"] == denoiser and f"{space}_{key}" in x]
                values = [x[f"{space}_{key}"] for x in same]
                axes.plot(
                    [x["resolution"] for x in same],
                    [median(x) if isinstance(x, list) else x for x in values],
                    line,
                    color=colour,
                    marker="o",
                    label=f"{space}, {denoiser}",
                )
        sizes = sorted({point["resolution"] for point in points})
        axes.set(xscale="log", yscale="log", xlabel="image size, pixels", title=title)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, format="png", dpi=110)
