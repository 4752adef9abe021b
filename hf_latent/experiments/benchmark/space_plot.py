"""The plot of `bench space`: how the costs of pixels and of latents grow with the image."""

from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from hf_latent.experiments.benchmark.plot import Line, draw_panels

COLOURS = {"pixels": "tab:red", "latents": "tab:blue"}
PANELS = {
    "step_seconds": "seconds of a denoising step",
    "training_step_seconds": "seconds of a training step",
    "training_step_activations_mb": "activations of a training step, MB",
}
LINE_STYLES = ("-", "--")


def draw_costs(points: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds and memory over the size of the images.

    Args:
        points: of bench.json.
        path: the PNG file to write.
    """
    panels = {title: cost_lines(points, key) for key, title in PANELS.items()}
    sizes = sorted({point["resolution"] for point in points})
    draw_panels(panels, "image size, pixels", sizes, path)


def cost_lines(points: list[dict[str, Any]], key: str) -> list[Line]:
    """Return a line for each denoiser and space: the medians of a cost, where it was measured."""
    lines = []
    denoisers = dict.fromkeys(point["denoiser"] for point in points)
    for denoiser, line_style in zip(denoisers, cycle(LINE_STYLES), strict=False):
        for space, colour in COLOURS.items():
            name = f"{space}_{key}"
            same = [x for x in points if x["denoiser"] == denoiser and name in x]
            values = [x[name] for x in same]
            medians = [median(x) if isinstance(x, list) else x for x in values]
            style = {"color": colour, "linestyle": line_style}
            sizes = [x["resolution"] for x in same]
            lines.append(Line(f"{space}, {denoiser}", sizes, medians, style))
    return lines
