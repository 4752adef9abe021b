"""The texts and the plot of a sweep; report.json has all that they need."""

import io
from math import dist
from pathlib import Path
from typing import Any

from hf_latent.evaluation.report_text import format_number, render_template
from hf_latent.experiments.sweep.choice import measured

MARKERS = "os^Dvp*hX"  # by factor
DPI = 120
NAME_DISTANCE = 7  # from a marker's center, in points
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


def render_report(report: dict[str, Any]) -> str:
    """Return report.md, given the content of report.json."""
    return render_template(
        Path(__file__).with_suffix(".md"),
        report,
        conclusion="\n".join(_conclusion(report)),
        keys={key for pair in report["pairs"] for key in pair},
    )


def _conclusion(report: dict[str, Any]) -> list[str]:
    if report["recommended"] is None:
        return ["Nothing can be recommended: no pair has figures.", ""]
    lines = [f"Choose **{report['recommended']}**: {report['reason']}.", ""]
    if report["warnings"]:
        lines += [*(f"- Warning: {warning}." for warning in report["warnings"]), ""]
    return lines


def describe_sweep(report: dict[str, Any], folder: str) -> str:
    """Return lines for the terminal: a table of the pairs and the recommendation.

    Args:
        report: the content of report.json.
        folder: the folder of the report.
    """
    row = "{:>9}  {:>11}  {:>9}  {:>8}  {:>12}  {:>14}".format
    table = [row("", "rate", "PSNR", "FD floor", "generated FD", "sampling")]
    table += [
        row(
            pair["name"] + ("*" if pair["name"] in report["pareto_front"] else ""),
            format_number(pair["rate_bits_per_image"], "{:.0f} bits"),
            format_number(pair["reconstruction_psnr_db"], "{:.2f} dB"),
            format_number(pair["floor_fd"], "{:.2f}"),
            format_number(pair["generated_fd"], "{:.2f}"),
            format_number(pair["sampling_images_per_second"], "{:.1f} images/s"),
        )
        for pair in report["pairs"]
    ]
    conclusion = [line.replace("**", "") for line in _conclusion(report) if line]
    return "\n".join(
        ["", *table, "* on the Pareto front", "", *conclusion, "", f"{folder}/report.md, sweep.png"]
    )


def render_plot(report: dict[str, Any]) -> bytes:
    """Plot generated FD against PSNR: right and low is good.

    Args:
        report: the content of report.json.

    Returns:
        A PNG file. Each pair has a marker, whose shape is the factor and whose colour is the
        sampling speed, with the range of the seeds. A dash below it is the FD of a perfect
        denoiser. A line joins the Pareto front, and a ring marks the recommended pair.
    """
    from matplotlib.figure import Figure

    pairs = {pair["name"]: pair for pair in measured(report["pairs"])}
    places = {
        x: (pair["reconstruction_psnr_db"], pair["generated_fd"]) for x, pair in pairs.items()
    }
    speeds = [pair["sampling_images_per_second"] for pair in pairs.values()]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    if report["pareto_front"]:
        front = zip(*(places[name] for name in report["pareto_front"]), strict=True)
        axes.plot(*front, color="black", linewidth=1, label="Pareto front")
    for name, pair in pairs.items():
        by_seed = pair["generated_fd_by_seed"]
        axes.vlines(places[name][0], min(by_seed), max(by_seed), color="grey")
    points = None
    for marker, factor in zip(MARKERS, sorted({x["factor"] for x in pairs.values()}), strict=False):
        same = [name for name, pair in pairs.items() if pair["factor"] == factor]
        across, up = zip(*(places[name] for name in same), strict=True)
        points = axes.scatter(
            across,
            up,
            s=70,
            c=[pairs[name]["sampling_images_per_second"] for name in same],
            marker=marker,
            vmin=min(speeds),
            vmax=max(speeds),
            edgecolors="black",
            label=f"factor {factor}",
            zorder=3,
        )
    floors = [(places[x][0], pair["floor_fd"]) for x, pair in pairs.items() if pair["floor_fd"]]
    label = "with a perfect denoiser"
    for psnr, floor in floors:
        axes.scatter(psnr, floor, s=70, c="tab:red", marker="_", label=label)
        label = ""  # one entry in the legend
    if report["recommended"] is not None:
        ring: dict[str, Any] = {
            "s": 220,
            "facecolors": "none",
            "edgecolors": "tab:red",
            "linewidths": 2,
        }
        axes.scatter(*places[report["recommended"]], label="recommended", zorder=4, **ring)
    if report["real_against_real_fd"]:
        real_fd, label = report["real_against_real_fd"], "real against real images"
        axes.axhline(real_fd, color="grey", linestyle=":", label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.margins(0.12)
    axes.set(
        xlabel="PSNR of held-out images, dB (higher: less is lost)",
        ylabel=f"FD of {report['num_images']:,} generated images (lower: closer to real ones)",
        title=f"Latents of {report['data']}, at equal training time",
    )
    axes.grid(alpha=0.3)
    if points is not None:
        figure.colorbar(points, label="sampling, images/s")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", markerscale=0.8)
    _write_names(axes, {name.replace("-", " "): place for name, place in places.items()}, floors)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _write_names(
    axes: Any, names: dict[str, tuple[float, float]], dashes: list[tuple[float, float]]
) -> None:
    """Write a name beside each point, where it covers little and is not nearer to other points."""
    from matplotlib.transforms import Bbox

    axes.figure.set_dpi(DPI)
    axes.figure.draw_without_rendering()
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.get_lines()]
    points = {name: axes.transData.transform(point) for name, point in names.items()}
    squares = [(point, 10) for point in points.values()]
    squares += [(axes.transData.transform(dash), 3) for dash in dashes]
    taken = [Bbox([point - half, point + half]) for point, half in squares]

    def cost(name: str, box: Bbox) -> int:
        distances = {x: dist((box.p0 + box.p1) / 2, point) for x, point in points.items()}
        nearer = sum(x < distances[name] for x in distances.values())
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        return nearer + crossed + box.count_overlaps(taken)

    for name, point in names.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset points")
        costs = [cost(name, _move(text, *direction)) for direction in DIRECTIONS]
        taken.append(_move(text, *DIRECTIONS[costs.index(min(costs))]))


def _move(text: Any, x: int, y: int) -> Any:
    """Move an annotation to one side of its point; return the box that it covers."""
    text.set_position((x * NAME_DISTANCE, y * NAME_DISTANCE))
    text.set(ha=("center", "left", "right")[x], va=("center", "bottom", "top")[y])
    return text.get_window_extent()
