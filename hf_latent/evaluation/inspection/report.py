"""report.md, made from the content of report.json."""

import math
from typing import Any


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table(*rows: tuple[Any, ...]) -> list[str]:
    head, *others = rows
    return [_row(*head), _row(*("---" for _ in head)), *(_row(*row) for row in others), ""]


def _number(value: float | None, form: str) -> str:
    """Write a number; what is not finite is null in report.json."""
    return "-" if value is None or not math.isfinite(value) else form.format(value)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _list(values: list[float | None], digits: int = 2) -> str:
    return ", ".join(_number(value, f"{{:.{digits}f}}") for value in values)


def _arithmetic(report: dict[str, Any]) -> list[str]:
    rows: list[tuple[Any, ...]] = [
        ("", ""),
        ("image", f"{_shape(report['image_shape'])}: {report['image_values']:,} values"),
        ("latent", f"{_shape(report['latent_shape'])}: {report['latent_values']:,} values"),
        ("ratio", f"{report['compression_ratio']:g} times fewer values"),
    ]
    if "rate_bits_per_pixel" in report:
        rows += [
            ("KL, as in training", f"{report['kl_bits_per_pixel']:.3f} bits a pixel"),
            (
                "rate, on the latent's own scale",
                f"{report['rate_bits_per_pixel']:.3f} bits a pixel",
            ),
        ]
    rows += [
        ("100,000 images, 8 bit", f"{report['images_uint8_mb_per_100000']:,.0f} MB"),
        ("100,000 latents, float32", f"{report['latents_float32_mb_per_100000']:,.0f} MB"),
    ]
    return ["## Compression", "", *_table(*rows)]


def _kept(report: dict[str, Any]) -> list[str]:
    rows: list[tuple[Any, ...]] = [("figure", "")]
    names = {
        "psnr_db": ("PSNR (RGBA: on white)", "{:.2f} dB"),
        "psnr_db_5_percent": ("PSNR that 5% of images fall below", "{:.2f} dB"),
        "ssim": ("SSIM", "{:.4f}"),
        "unpadded_psnr_db": ("PSNR without the padding", "{:.2f} dB"),
        "unpadded_ssim": ("SSIM without the padding", "{:.4f}"),
        "ms_ssim": ("MS-SSIM", "{:.4f}"),
        "grey_psnr_db": ("PSNR on mid-grey", "{:.2f} dB"),
        "alpha_psnr_db": ("PSNR of alpha", "{:.2f} dB"),
        "reconstruction_fd": ("FD of reconstructions to their images", "{:.2f}"),
        "real_fd": ("FD of held-out to training images, for comparison", "{:.2f}"),
    }
    rows += [(text, _number(report[k], form)) for k, (text, form) in names.items() if k in report]
    return [f"## Information kept, on {report['images']:,} held-out images", "", *_table(*rows)]


def _dropped(report: dict[str, Any]) -> list[str]:
    edges = report["band_edges_cycles_per_pixel"]
    low, high, layout, edge_share, noise = (
        _number(value, "{:.1%}")
        for value in (
            report["band_kept"][0],
            report["band_kept"][-1],
            report["layout_agreement"],
            report["edge_agreement"],
            report["noise_survival"],
        )
    )
    bands = [
        (
            f"{before:.3g} to {after:.3g}",
            _number(signal, "{:.2e}"),
            _number(error, "{:.2e}"),
            _number(kept, "{:.3f}"),
        )
        for before, after, signal, error, kept in zip(
            [0.0, *edges[:-1]],
            edges,
            report["band_signal_power"],
            report["band_error_power"],
            report["band_kept"],
            strict=True,
        )
    ]
    return [
        "## What is kept and what is dropped",
        "",
        f"Of the lowest frequencies {low} is kept, of the highest {high}. Layout (heavily "
        f"blurred images) agrees to {layout}, edges (Sobel) to "
        f"{edge_share}. Of pixel noise added with a deviation of "
        f"{report['noise_std']:g} (of a range of 1), {noise} survives the "
        "round trip.",
        "",
        "![What is kept, by frequency and by kind](frequencies.png)",
        "",
        *_table(("cycles a pixel", "power of images", "power of errors", "kept"), *bands),
    ]


def _latent(report: dict[str, Any]) -> list[str]:
    columns = (
        "latent_mean",
        "latent_std",
        "latent_skewness",
        "latent_excess_kurtosis",
        "latent_ks_distance",
        "latent_informative_share",
    )
    rows = [
        (channel, *(_number(report[name][channel], "{:.3f}") for name in columns))
        for channel in range(len(report["latent_std"]))
    ]
    off_diagonal = [
        abs(value or 0.0)
        for i, row in enumerate(report["latent_correlation"])
        for j, value in enumerate(row)
        if i != j
    ]
    heads = ("channel", "mean", "deviation", "skewness", "excess kurtosis", "distance to normal")
    return [
        "## The latent",
        "",
        f"Dead channels: {', '.join(map(str, report['dead_channels'])) or 'none'}. Largest "
        f"correlation between two channels: {max(off_diagonal, default=0.0):.2f}.",
        "",
        *_table((*heads, "share that tells of the image"), *rows),
        "![Images, reconstructions and latent channels](channels.png)",
        "",
        "A straight line between two latents, decoded:",
        "",
        "![Interpolations](interpolation.png)",
        "",
        "Noise in the latent, of "
        f"{_list(report['latent_noise_levels'])} deviations, leaves "
        f"{_list(report['latent_noise_psnr_db'], 1)} dB:",
        "",
        "![Ever more noise in the latent](latent_noise.png)",
        "",
    ]


def _yardsticks(report: dict[str, Any]) -> list[str]:
    rows = [
        (
            row["name"],
            f"{row['bytes_per_image']:.0f}" if "bytes_per_image" in row else "",
            f"{row['fits_share']:.0%}",
            _number(row["psnr_db"], "{:.2f} dB"),
            _number(row["ssim"], "{:.4f}"),
            _number(row["edge_agreement"], "{:.3f}"),
        )
        for row in report["yardsticks"]
    ]
    return [
        "## What else the same bytes would buy",
        "",
        f"An image's latent is taken at {report['budget_bytes']:.0f} bytes ({report['budget']}). "
        "JPEG and WebP get as many, not counting what a file of one flat colour takes; bicubic "
        "resampling gets as many values as the latent has.",
        "",
        *_table(("", "bytes an image", "images that fit", "PSNR", "SSIM", "edges"), *rows),
    ]


def render_report(report: dict[str, Any]) -> str:
    """Write a report for people.

    Args:
        report: the content of report.json.

    Returns:
        Markdown; its pictures are beside it.
    """
    lines = [
        f"# {report['vae']}: {report['verdict']}",
        "",
        *(f"- {reason}" for reason in report["reasons"]),
        "",
        f"{report['vae_class']} `{report['vae_sha256'][:16]}` on {report['data']} "
        f"({report['preprocessing']}; held-out images `{report['held_out_fingerprint']}`).",
        "",
        *_arithmetic(report),
        *_kept(report),
        *_dropped(report),
        *_latent(report),
        *_yardsticks(report),
        "## The worst images, each beside its reconstruction",
        "",
        "![The twelve worst](worst.png)",
    ]
    return "\n".join(lines) + "\n"
