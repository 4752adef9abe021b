"""report.md of a sweep, made from the content of report.json alone."""

from typing import Any


def _number(value: float | None, form: str) -> str:
    """Write a number; what is not finite is null in report.json."""
    return "-" if value is None else form.format(value)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# Heading, key, and how the figure is written.
COLUMNS = (
    ("fewer values", "compression_ratio", "{:g}x"),
    ("rate", "rate_bits_per_image", "{:.0f} bits"),
    ("bits a pixel", "rate_bits_per_pixel", "{:.2f}"),
    ("PSNR", "reconstruction_psnr_db", "{:.2f} dB"),
    ("SSIM", "reconstruction_ssim", "{:.3f}"),
    ("PSNR unpadded", "reconstruction_unpadded_psnr_db", "{:.2f} dB"),
    ("SSIM unpadded", "reconstruction_unpadded_ssim", "{:.3f}"),
    ("rFD", "reconstruction_fd", "{:.2f}"),
    ("FD floor", "floor_fd", "{:.2f}"),
    ("generated FD", "generated_fd", "{:.2f}"),
    ("range of seeds", "generated_fd_spread", "{:.2f}"),
    ("sampling", "sampling_images_per_second", "{:.1f} images/s"),
)
TRAINING_COLUMNS = (
    ("autoencoder weights", "autoencoder_parameters", "{:,}"),
    ("steps", "autoencoder_steps", "{:,}"),
    ("minutes", "autoencoder_minutes", "{:.2f}"),
    ("images/s", "autoencoder_train_images_per_second", "{:.0f}"),
    ("denoiser weights", "denoiser_parameters", "{:,}"),
    ("steps", "denoiser_steps", "{:,}"),
    ("minutes", "denoiser_minutes", "{:.2f}"),
    ("images/s", "denoiser_train_images_per_second", "{:.0f}"),
)


def _table(report: dict[str, Any], columns: tuple[tuple[str, str, str], ...]) -> list[str]:
    """Write a row a pair; the recommended one is bold, those of the front have a star."""
    columns = tuple(x for x in columns if any(x[1] in pair for pair in report["pairs"]))
    lines = [
        _row(["", "latent", *(heading for heading, _, _ in columns)]),
        _row(["---"] * (2 + len(columns))),
    ]
    for pair in report["pairs"]:
        name = f"**{pair['name']}**" if pair["name"] == report["recommended"] else pair["name"]
        name += " *" if pair["name"] in report["pareto_front"] else ""
        latent = " x ".join(map(str, pair["latent_shape"]))
        figures = [_number(pair.get(key), form) for _, key, form in columns]
        lines.append(_row([name, latent, *figures]))
    return [*lines, ""]


def _conclusion(report: dict[str, Any]) -> list[str]:
    if report["recommended"] is None:
        return ["Nothing can be recommended: no pair has figures.", ""]
    lines = [f"Take **{report['recommended']}**: {report['reason']}.", ""]
    if report["warnings"]:
        lines += [*(f"- But: {warning}." for warning in report["warnings"]), ""]
    return lines


def _next(report: dict[str, Any]) -> list[str]:
    chosen = [pair for pair in report["pairs"] if pair["name"] == report["recommended"]]
    if not chosen:
        return []
    (pair,) = chosen
    widths = ",".join(map(str, report["widths"][str(pair["factor"])]))
    return [
        "## What to do with it",
        "",
        "- Train both models of that latent for as long as you can. Its autoencoder's settings, "
        "beside those of your images:",
        "",
        f"      --latent_channels {pair['latent_channels']} --block_out_channels [{widths}] "
        f"--reconstruction_loss l2 --kl_weight {pair['kl_weight_per_latent_value']:.3g}",
        "",
        f"- All settings are in {pair['name']}/autoencoder/config.yaml and "
        f"{pair['name']}/denoiser/config.yaml, the short model in {pair['name']}/denoiser/model.",
        "- Short trainings favour latents that are learned quickly. Where two pairs are close, "
        "sweep these again with more minutes.",
        "",
    ]


def render_report(report: dict[str, Any]) -> str:
    """Write a report for people.

    Args:
        report: the content of report.json.

    Returns:
        Markdown; its plot is beside it.
    """
    front = ", ".join(report["pareto_front"]) or "none"
    failed = [f"- {x['name']} failed: {x['error']}" for x in report["failed_pairs"]]
    lines = [
        f"# Which latent for {report['data']}",
        "",
        *_conclusion(report),
        f"Pareto front (no other pair is better in both PSNR and generated FD): {front}.",
        "",
        *([*failed, ""] if failed else []),
        "![Distortion and generated FD of each pair](sweep.png)",
        "",
        "## Figures",
        "",
        *_table(report, COLUMNS),
        f"PSNR, SSIM and rFD are of {report['held_out_images']:,} held-out images and their "
        f"reconstructions. FDs of {report['num_images']:,} images each are against "
        f"{report['num_images']:,} real ones; as many other real ones reach "
        f"{_number(report['real_against_real_fd'], '{:.2f}')}. The floor is what a perfect "
        "denoiser would reach: other real images, through the autoencoder. Generated FD is the "
        f"mean of {report['num_seeds']} seeds, without guidance, at "
        f"{report['num_inference_steps']} steps, and its range says how far they lie apart; it "
        "does not say how much another training would change. The rate is the KL divergence of "
        "the posterior to a normal of each channel's own mean and deviation, in bits: an upper "
        "bound on what the latent tells of the image. Features: "
        f"{report['preprocessing']}. FDs can only be compared at equal numbers of images.",
        "",
        "A star marks the Pareto front, bold the recommendation.",
        "",
        "## Trainings, equally long by the clock",
        "",
        *_table(report, TRAINING_COLUMNS),
        f"{report['train_images']:,} training images; held-out fingerprint "
        f"`{report['validation_fingerprint']}`; {report['torch_threads']} of "
        f"{report['cpu_cores']} cores used. A nat of an image's latent costs all autoencoders the "
        f"same, {report['kl_weight']:g} as LDM counts it.",
        "",
        *_next(report),
    ]
    return "\n".join(lines).rstrip() + "\n"


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
            _number(pair["rate_bits_per_image"], "{:.0f} bits"),
            _number(pair["reconstruction_psnr_db"], "{:.2f} dB"),
            _number(pair["floor_fd"], "{:.2f}"),
            _number(pair["generated_fd"], "{:.2f}"),
            _number(pair["sampling_images_per_second"], "{:.1f} images/s"),
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
