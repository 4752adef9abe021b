"""The texts and the plot of a sweep, made from the content of report.json alone."""

import io
from pathlib import Path
from typing import Any

from hf_latent.evaluation.report_text import format_number, render_template
from hf_latent.experiments.sweep.choice import measured

MARKERS = "os^Dvp*hX"  # by factor


def render_report(report: dict[str, Any]) -> str:
    """Write a report for people.

    Args:
        report: the content of report.json.

    Returns:
        Markdown; its plot is beside it.
    """
    return render_template(
        Path(__file__).with_suffix(".md"),
        report,
        conclusion="\n".join(_conclusion(report)),
        keys={key for pair in report["pairs"] for key in pair},
    )


def _conclusion(report: dict[str, Any]) -> list[str]:
    if report["recommended"] is None:
        return ["Nothing can be recommended: no pair has figures.", ""]
    lines = [f"Take **{report['recommended']}**: {report['reason']}.", ""]
    if report["warnings"]:
        lines += [*(f"- But: {warning}." for warning in report["warnings"]), ""]
    return lines


def summarize(report: dict[str, Any], folder: str) -> str:
    """Say what was found, in a few lines for the terminal.

    Args:
        report: the content of report.json.
        folder: where it lies.
    """
    heads = ("", "rate", "PSNR", "FD floor", "generated FD", "sampling")
    rows = [heads] + [
        (
            pair["name"] + ("*" if pair["name"] in report["pareto_front"] else ""),
            format_number(pair["rate_bits_per_image"], "{:.0f} bits"),
            format_number(pair["reconstruction_psnr_db"], "{:.2f} dB"),
            format_number(pair["floor_fd"], "{:.2f}"),
            format_number(pair["generated_fd"], "{:.2f}"),
            format_number(pair["sampling_images_per_second"], "{:.1f} images/s"),
        )
        for pair in report["pairs"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    conclusion = [line.replace("**", "") for line in _conclusion(report) if line]
    return "\n".join(
        ["", *table, "* on the Pareto front", "", *conclusion, "", f"{folder}/report.md, sweep.png"]
    )


def render_plot(report: dict[str, Any]) -> bytes:
    """Plot generation against distortion: right and low is good.

    Args:
        report: the content of report.json.

    Returns:
        A PNG file: a marker a pair, its shape by factor and its colour by sampling throughput,
        with the range of the seeds; below it a dash where a perfect denoiser would be; the Pareto
        front as a line; the recommended pair in a ring.
    """
    from matplotlib.figure import Figure

    pairs = {pair["name"]: pair for pair in measured(report["pairs"])}
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()

    def place(pair: dict[str, Any]) -> tuple[float, float]:
        return pair["reconstruction_psnr_db"], pair["generated_fd"]

    front = [place(pairs[name]) for name in report["pareto_front"]]
    if front:
        axes.plot(*zip(*front, strict=True), color="black", linewidth=1, label="Pareto front")
    speeds = [pair["sampling_images_per_second"] for pair in pairs.values()]
    points = None
    for marker, factor in zip(MARKERS, sorted({x["factor"] for x in pairs.values()}), strict=False):
        same = [pair for pair in pairs.values() if pair["factor"] == factor]
        across, up = zip(*map(place, same), strict=True)
        by_seed = [pair["generated_fd_by_seed"] for pair in same]
        axes.vlines(across, list(map(min, by_seed)), list(map(max, by_seed)), color="grey")
        points = axes.scatter(
            across,
            up,
            s=90,
            c=[pair["sampling_images_per_second"] for pair in same],
            marker=marker,
            vmin=min(speeds),
            vmax=max(speeds),
            edgecolors="black",
            label=f"factor {factor}",
            zorder=3,
        )
    floors = [pair for pair in pairs.values() if pair["floor_fd"] is not None]
    axes.scatter(
        [pair["reconstruction_psnr_db"] for pair in floors],
        [pair["floor_fd"] for pair in floors],
        s=70,
        c="tab:red",
        marker="_",
        label="with a perfect denoiser",
    )
    for pair in pairs.values():
        axes.annotate(
            f"f{pair['factor']} c{pair['latent_channels']}",
            place(pair),
            xytext=(8, 5),
            textcoords="offset points",
        )
    if report["recommended"] is not None:
        axes.scatter(
            *place(pairs[report["recommended"]]),
            s=350,
            facecolors="none",
            edgecolors="tab:red",
            linewidths=2,
            label="recommended",
            zorder=4,
        )
    if report["real_against_real_fd"]:
        axes.axhline(
            report["real_against_real_fd"],
            color="grey",
            linestyle=":",
            label="real against real images",
        )
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
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
