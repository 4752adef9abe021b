"""Several autoencoders side by side: one table from their reports, speed, memory and a ranking."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.errors import UserError
from hf_latent.evaluation.costs import Costs, measure_peak_bytes
from hf_latent.evaluation.inspection.ranking import rank
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.reconstruction import decode_batch, encode_batch
from hf_latent.evaluation.report_text import render_template, write_report
from hf_latent.evaluation.timing import time_alternately
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.decode import decode_latents

ROUNDS = 5
# What a row takes from the report of its autoencoder, and what all reports share.
OWN = (
    "verdict", "vae_class", "vae_sha256", "latent_shape", "latent_values", "compression_ratio",
    "rate_bits_per_pixel", "psnr_db", "ssim", "luma_r2", "chroma_r2", "edge_agreement",
    "layout_agreement", "noise_survival", "reconstruction_fd", "floor_fd", "ifid",
)  # fmt: skip
SHARED = (
    "data", "preprocessing", "held_out_fingerprint", "validation_fingerprint", "train_fingerprint",
    "image_shape", "images", "seed", "real_fd", "real_fd_images", "reconstruction_fd_preprocessing",
)  # fmt: skip


def distinct_names(given: Sequence[str], setting: str) -> dict[str, str]:
    """Return what was given for each autoencoder or run, by a short name.

    Of several paths, the parts at the end that are equal are left out, and as many parts before
    them remain as tell all apart: `sweep/f4-c4/autoencoder/model` and
    `sweep/f4-c8/autoencoder/model` are `f4-c4` and `f4-c8`.

    Raises:
        UserError: if one is given twice.
    """
    if len(given) == 1:
        return {shown_name(given[0]): given[0]}
    paths = [Path(x).expanduser() for x in given]
    parts = [x.resolve().parts if x.exists() else x.parts for x in paths]
    # A run's model is named after the run.
    parts = [own[:-1] if own[-1] == "model" else own for own in parts]
    for number, own in enumerate(parts):
        if own in parts[:number]:
            raise UserError(f"--{setting} {given[number]} is given twice")
    while min(map(len, parts)) > 1 and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return {"-".join(own[-length:]): x for own, x in zip(parts, given, strict=True)}


@torch.no_grad()
def measure_costs(
    vaes: Mapping[str, Autoencoder], images: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Measure speed and memory, the autoencoders in turn.

    Args:
        vaes: by name.
        images: `(B, C, H, W)` float in [-1, 1], a batch.

    Returns:
        By name: images a second of encoding and of decoding, medians of five rounds; and MB of the
        most tensors that decoding one image holds at once, without the weights.
    """
    calls: dict[str, Callable[[], Any]] = {}
    figures: dict[str, dict[str, float]] = {}
    for name, vae in vaes.items():
        latents = encode_batch(vae, images)
        calls[f"encode {name}"] = partial(encode_batch, vae, images)
        calls[f"decode {name}"] = partial(decode_batch, vae, latents)
        one = latents[:1].clone()
        decode_one = partial(decode_latents, vae, one)
        if one.device.type == "cpu":
            with Costs() as costs:
                decode_one()
            held = costs.peak_bytes
        else:
            held = measure_peak_bytes(decode_one)
        figures[name] = {"decode_activations_mb": held / 2**20}
    for call, seconds in time_alternately(calls, ROUNDS).items():
        kind, name = call.split(" ", 1)
        figures[name][f"{kind}_images_per_second"] = len(images) / median(seconds)
    return figures


def compare_autoencoders(
    vaes: Mapping[str, Autoencoder],
    reports: Mapping[str, dict[str, Any]],
    held_out: ImageDataset,
    batch_size: int,
    output_dir: Path,
) -> dict[str, Any]:
    """Compare autoencoders on the same images; write report.json and report.md.

    Args:
        vaes: by name.
        reports: of each, by name.
        held_out: the images.
        batch_size: of the images whose encoding and decoding are timed.
        output_dir: has a folder of each autoencoder, of its name.

    Returns:
        The content of report.json.
    """
    costs = measure_costs(vaes, held_out.read(torch.arange(min(batch_size, len(held_out)))))
    rows = [
        {"name": name, **{key: report[key] for key in OWN if key in report}, **costs[name]}
        for name, report in reports.items()
    ]
    (first, *_) = reports.values()
    report = {
        **{key: first[key] for key in SHARED if key in first},
        "ranking": rank(rows),
        "autoencoders": rows,
        "timed_batch_size": min(batch_size, len(held_out)),
        **machine_figures(),
    }
    report = write_report(output_dir, report, render_comparison)
    for place, entry in enumerate(report["ranking"], start=1):
        print(f"{place}. {entry['name']}: {entry['reason']}")
    print(f"{output_dir / 'report.md'}")
    return report


def render_comparison(report: dict[str, Any]) -> str:
    """Return report.md, given the content of report.json."""
    keys = {key for row in report["autoencoders"] for key in row}
    return render_template(Path(__file__).with_suffix(".md"), report, keys=keys)
