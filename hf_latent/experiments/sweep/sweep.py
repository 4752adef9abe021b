"""`hf-latent sweep`: choose the latent by rate, distortion and the samples of a short denoiser."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import (
    FeatureExtractor,
    image_vectors,
    load_feature_extractor,
)
from hf_latent.evaluation.images.reference import RealImages, check_held_out
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.report_text import write_report
from hf_latent.experiments.sweep.choice import pareto_front, recommend
from hf_latent.experiments.sweep.config import SweepConfig
from hf_latent.experiments.sweep.pair import PAIR_FILES, RealBaseline, run_pair
from hf_latent.experiments.sweep.plan import (
    BATCH_SIZE,
    HELD_OUT_IMAGES,
    Plan,
    check_same_images,
    create_models,
    make_plan,
    read_plan,
    reserve_known,
)
from hf_latent.experiments.sweep.report import describe_sweep, render_plot, render_report
from hf_latent.experiments.time_budget import TimeBudget
from hf_latent.lock import locks_output
from hf_latent.output import check_output_dir, remove_written, replaced_whole, write_json
from hf_latent.training.finish.next_steps import command_line, image_settings

logger = logging.getLogger(__name__)


def check_splits(config: SweepConfig, splits: ImageSplits) -> None:
    """Check that there are enough images and that every pair fits them.

    Raises:
        UserError: if not.
    """
    if len(splits.train) < 2 * config.num_images:
        raise UserError(
            f"--num_images {config.num_images} needs {2 * config.num_images} training images to "
            f"compare with, and there are {len(splits.train)}"
        )
    check_held_out(splits, config.data)
    with torch.device("meta"):  # computes nothing
        for pair in config.pairs():
            create_models(config, pair, splits.image_shape, splits.num_classes)


def start_sweep(
    config: SweepConfig, extractor: FeatureExtractor, budget: TimeBudget
) -> tuple[ImageSplits, Plan]:
    """Open the images, and make the plan of a new sweep or read that of a killed one.

    Raises:
        UserError: if the folder, the images or the time do not fit the settings.
    """
    output_dir = Path(config.output_dir)
    path = output_dir / "plan.json"
    plan = None
    if path.is_file():
        try:
            plan = read_plan(path, config.settings())
        except UserError:
            if not config.overwrite_output_dir:
                raise
            for pair in output_dir.glob("f*-c*"):
                remove_written(pair, PAIR_FILES)
            path.unlink()  # last: if the sweep is killed before, the next run removes the rest
    check_output_dir(output_dir, config.overwrite_output_dir or plan is not None)
    if plan is None:
        reserve_known(config, budget)
    splits = open_images(config.images_config())
    extractor.see(splits.shown_channels)
    check_splits(config, splits)
    if plan is None:
        plan = make_plan(config, splits, extractor, budget)
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(plan))
    else:
        check_same_images(plan, splits, extractor, output_dir)
    return splits, plan


def measure_real_images(
    splits: ImageSplits, num_images: int, seed: int, extractor: FeatureExtractor
) -> tuple[RealBaseline, float]:
    """Return the vectors of real images, and the FD of real images against other real images."""

    def vectors(dataset: ImageDataset) -> list[torch.Tensor]:
        return list(image_vectors(dataset, extractor, BATCH_SIZE))

    images = RealImages.choose(splits, num_images, seed)
    held_out = images.held_out.evenly_spaced(HELD_OUT_IMAGES)
    reference = vectors(images.subset(images.reference))
    real_fd = frechet_distance(vectors(images.subset(images.other)), reference)
    return RealBaseline(images, held_out, vectors(held_out), reference, extractor), real_fd


def sweep_pairs(
    config: SweepConfig,
    plan: Plan,
    splits: ImageSplits,
    real: RealBaseline,
    now: Callable[[], float],
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Run every pair; a pair that fails with a user error does not stop the others.

    Returns:
        The figures of the pairs, and name and error of the failed ones.

    Raises:
        UserError: if all pairs fail.
    """
    finished, failed, pairs = [], [], config.pairs()
    for number, pair in enumerate(pairs, start=1):
        left = f"{(len(pairs) - number) * plan.pair_minutes:.1f} minutes left at most"
        try:
            figures = run_pair(config, plan, pair, splits, real, now)
        except UserError as error:
            failed.append({"name": pair.name, "error": str(error)})
            logger.info(f"{number}/{len(pairs)} {pair.name} failed: {error}; {left}")
            continue
        finished.append(figures)
        psnr, fd = (figures[key] for key in ("reconstruction_psnr_db", "generated_fd"))
        result = "no figures" if None in (psnr, fd) else f"{psnr:.2f} dB, generated FD {fd:.2f}"
        logger.info(f"{number}/{len(pairs)} {pair.name}: {result}; {left}")
    if not finished:
        raise UserError(f"no pair could be trained: {failed[0]['name']}: {failed[0]['error']}")
    return finished, failed


def train_command(config: SweepConfig, pair: dict[str, Any]) -> str:
    """Return the command that trains a pair's autoencoder, given its figures."""
    return command_line(
        "train-autoencoder",
        **image_settings(config.images_config()),
        preset=config.preset,
        latent_channels=pair["latent_channels"],
        block_out_channels=list(config.widths(pair["factor"])),
        reconstruction_loss="l2",
        kl_weight=f"{pair['kl_weight_per_latent_value']:.3g}",
        output_dir=f"{config.output_dir}-autoencoder",
    )


@locks_output
def sweep(
    config: SweepConfig,
    started: float | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Train and measure every pair, and write report.json, report.md and sweep.png.

    Args:
        config: the settings.
        started: see `TimeBudget`.
        now: the clock, in seconds.

    Returns:
        The content of report.json.

    Raises:
        UserError: if the time is too short, a pair is not possible, or the folder has another
            sweep.
    """
    budget = TimeBudget(config.max_minutes, started, now)
    output_dir = Path(config.output_dir)
    extractor = load_feature_extractor("efficientnet-lite0")
    splits, plan = start_sweep(config, extractor, budget)
    pairs = config.pairs()
    logger.info(
        f"{len(pairs)} pairs: {60 * plan.autoencoder_minutes:.0f} s for each autoencoder, "
        f"{60 * plan.denoiser_minutes:.0f} s for each denoiser, at most "
        f"{60 * plan.measuring_minutes:.0f} s to measure both."
    )
    real, real_fd = measure_real_images(splits, config.num_images, config.seed, extractor)
    finished, failed = sweep_pairs(config, plan, splits, real, now)
    report = {
        **config.settings(),
        "data": shown_name(config.data),
        "image_shape": splits.image_shape,
        "widths": {str(pair.factor): config.widths(pair.factor) for pair in pairs},
        "train_images": len(splits.train),
        "held_out_images": len(real.held_out),
        "validation_fingerprint": splits.validation_fingerprint,
        **splits.summary.figures(),
        "preprocessing": extractor.preprocessing,
        "planned_autoencoder_minutes": plan.autoencoder_minutes,
        "planned_denoiser_minutes": plan.denoiser_minutes,
        "planned_measuring_minutes_per_pair": plan.measuring_minutes,
        "real_against_real_fd": real_fd,
        "pairs": finished,
        "failed_pairs": failed,
        "pareto_front": pareto_front(finished),
        **recommend(finished, real_fd),
        "last_run_minutes": budget.total_seconds / 60,
        **machine_figures(),
    }
    report = write_report(output_dir, report, render_report)
    with replaced_whole(output_dir / "sweep.png") as temporary:
        temporary.write_bytes(render_plot(report))
    print(describe_sweep(report, str(output_dir)))
    for pair in finished:
        if pair["name"] == report["recommended"]:
            print(f"train it for longer:\n{train_command(config, pair)}")
    return report
