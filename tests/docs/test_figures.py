"""Every figure of the README and of the site is that of a report which a command wrote."""

import json
from pathlib import Path
from statistics import median
from typing import get_args

import pytest
import yaml

from hf_latent.evaluation.features.extractors import EfficientNetVectors
from hf_latent.evaluation.inspection.report import render_report
from hf_latent.experiments.sweep.report import render_report as render_sweep
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.models.load import PRETRAINED
from hf_latent.models.presets import Preset, create_autoencoder
from hf_latent.pipeline.autoencoders import downsampling_factor
from hf_latent.training import autoencoder_config, denoiser_config
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from tests.docs.pages import REPORTS, ROOT, prose, read, row
from tests.training.page.reading import Page
from variant_figures import TUNED

RELEASED = PRETRAINED
DEFAULTS = autoencoder_config.DEFAULTS, denoiser_config.DEFAULTS


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def test_of_the_quickstart():
    report = load(REPORTS / "quickstart" / "report.json")
    for figure in (
        f"{report['total_seconds'] / 60:.1f} minutes",
        f"{report['peak_memory_mb'] / 1024:.1f} GB",
        f"{report['label_agreement']:.3f} of {report['label_agreement_images']:,} samples",
        f"right for {report['classifier_real_test_accuracy']:.3f} of the real test images",
    ):
        assert figure in prose("README.md"), figure
    trained = row("guides/planning.md", "denoiser of quickstart")
    seen = report["denoiser_steps"] * 32
    for figure in (
        f"{report['train_images']:,}",
        f"{report['denoiser_steps']:,} x 32 | {seen:,}",
        f"{report['denoiser_training_seconds'] / 60:.1f} min",
        f"label agreement {report['label_agreement']:.3f}",
    ):
        assert figure in trained, figure


def test_of_a_first_try_with_photographs():
    page, folder = "guides/planning.md", REPORTS / "photographs-32"
    figures, trained = load(folder / "metrics.json"), load(folder / "training.json")
    for start, prefix, size, result in (
        (
            "autoencoder of photographs",
            "autoencoder_",
            16,
            f"{trained['autoencoder_held_out_psnr_db']:.1f} dB, R2 of chroma "
            f"{trained['autoencoder_held_out_chroma_r2']:.2f}",
        ),
        (
            "denoiser of these photographs",
            "",
            32,
            f"label agreement {figures['label_agreement']:.3f}",
        ),
    ):
        cells = (
            f"{trained['train_images']:,}",
            f"{trained[f'{prefix}steps']:,} x {size}",
            f"{trained[f'{prefix}images_seen']:,}",
            f"{trained[f'{prefix}seconds'] / 60:.0f} min",
            result,
        )
        assert row(page, start).endswith(f"| {' | '.join(cells)} |")
    for figure in (
        f"as many values keeps {trained['autoencoder_held_out_bicubic_psnr_db']:.1f} dB",
        f"FD of {figures['num_images']:,} images is {figures['fd']:.0f} (real images "
        f"{figures['real_fd']:.0f}, a perfect denoiser {figures['floor_fd']:.0f})",
        f"recall {figures['recall']:.2f} (real {figures['real_recall']:.2f})",
        f"The judge is right for {figures['label_agreement_judge_real_accuracy']:.2f}",
        f"names the {figures['limit']} as the limit",
    ):
        assert figure in prose(page), figure


def test_of_the_lesson():
    report, page = load(REPORTS / "lesson" / "report.json"), read("reports/lesson/lesson.html")
    shown = [row for x in Page(page).tables for row in x if row[-1] in ("holds", "contradicted")]
    for claim, cells in zip(report["claims"], shown, strict=True):
        value = "yes" if claim["value"] is True else f"{claim['value']:.3g}"
        assert cells == [claim["statement"], value, "holds" if claim["holds"] else "contradicted"]
        assert report[claim["figure"]] == claim["value"]
    threads = {1: "one thread"}[report["torch_threads"]]
    took = f"took {report['total_seconds'] / 60:.0f} minutes with {threads}"
    assert took in prose("lesson.md")
    contradicted = sum(not claim["holds"] for claim in report["claims"])
    assert (contradicted == 1) == ("One claim is contradicted" in prose("lesson.md"))


def test_of_the_attacks():
    report = load(REPORTS / "attacks.json")
    for name, start in (
        ("bad_input", "bad inputs"),
        ("kill", "kills"),
        ("corruption", "damaged files"),
        ("plant", "planted files"),
    ):
        failed = report[f"{name}_failures"]
        counts = f"| {report[name + 's']} | {len(failed) if isinstance(failed, list) else failed} |"
        assert counts in row("reliability.md", start), counts


@pytest.mark.parametrize("name", ["fashion-mnist-f4", "emoji"])
def test_of_the_released_autoencoders(name):
    metrics = load(RELEASED / name / "metrics.json")
    released = row("README.md", f"[`{name}`]")
    for figure in (
        "x".join(map(str, metrics["latent_shape"])),
        f"{metrics['test_psnr_db']:.1f} dB",
        f"{metrics['test_ssim']:.3f}",
        f"{metrics['weights_mb']:.1f} MB",
    ):
        assert figure in released, figure
    (trained,) = (
        line
        for line in read("guides/planning.md").splitlines()
        if f"`{name}`" in line and "|" in line
    )
    steps, batch = metrics["steps"], metrics["train_batch_size"]
    for figure in (
        f"{metrics['train_images']:,}",
        f"{steps:,} x {batch} | {steps * batch:,}",
        f"{metrics['seconds'] / 60:.0f} min",
        f"{metrics['test_psnr_db']:.1f} dB",
    ):
        assert figure in trained, figure


def test_of_the_released_model():
    x, training = (load(RELEASED / "fashion-mnist" / f"{y}.json") for y in ("metrics", "training"))
    weights = read_model_facts(RELEASED / "fashion-mnist").weights.values()
    for figure in (
        f"trained in {training['seconds'] / 60:.0f} minutes",
        f"{sum(x.size_bytes for x in weights) / 1e6:.1f} MB",
        f"FD of {x['num_images']:,} samples is {x['fd']:.2f} (real images {x['real_fd']:.2f}, "
        f"a perfect denoiser {x['floor_fd']:.2f}; lower is better)",
        f"label agreement {x['label_agreement']:.3f} (real images "
        f"{x['label_agreement_judge_real_accuracy']:.3f})",
    ):
        assert figure in prose("README.md"), figure
    student = load(RELEASED / "fashion-mnist-4step" / "metrics.json")
    assert student["denoiser_evaluations_per_image"] == 4
    assert f"reaches {student['fd']:.2f} in four evaluations" in prose("README.md")
    trained = row("guides/planning.md", "denoiser of `fashion-mnist`")
    seen, steps = training["images_seen"], training["steps"]
    assert trained.endswith(
        f"| {training['train_images']:,} | {steps:,} x {training['train_batch_size']} | {seen:,} "
        f"| {training['seconds'] / 60:.0f} min | FD {x['fd']:.2f} |"
    )
    assert seen == steps * training["train_batch_size"]


def test_of_the_presets():
    report, page = load(REPORTS / "presets.json"), read("guides/planning.md")
    for x in report["presets"]:
        trainings = x["autoencoder"], x["denoiser"]
        cells = [f"`{x['preset']}`", f"{x['resolution']}", "x".join(map(str, x["latent_shape"]))]
        for shown in (
            [f"{y['parameters'] / 1e6:.1f} M" for y in trainings],
            [f"{short(y['memory_mb'] / 1024)} GB" for y in trainings],
            [short(y["images_per_second"]) for y in trainings],
            [duration(1e6 / y["images_per_second"]) for y in trainings],
        ):
            cells.append(" + ".join(shown))
        assert f"| {' | '.join(cells)} |" in page, cells
        for training, defaults in zip(trainings, DEFAULTS, strict=True):
            assert training["train_batch_size"] == defaults[x["preset"]].train_batch_size


@pytest.mark.parametrize("preset", get_args(Preset))
def test_of_the_defaults_of_a_preset(preset):
    own = [defaults[preset] for defaults in DEFAULTS]
    rates = " + ".join(f"{x.learning_rate:g}" for x in own)
    batches = " + ".join(f"{x.train_batch_size}" for x in own)
    page = read("guides/planning.md").partition("## Which preset")[2]
    vae = create_autoencoder(preset, image_channels=3, sample_size=64)
    f, c = downsampling_factor(vae), vae.config.latent_channels
    assert f"| `{preset}` | {f}, {c} | {rates} | {batches} |" in page
    weights = sum(x.numel() for x in vae.parameters()) / 1e6
    line = f"{preset} (f={f}, {weights:.{0 if weights > 10 else 1}f} M weights"
    assert line in " ".join(AutoencoderConfig.__doc__.split())


def short(value: float) -> str:
    """Two digits of a figure, and all before the point."""
    return f"{value:.0f}" if value > 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time as the page shows it; more than 60 days are no plan."""
    minutes = seconds / 60
    if minutes < 60:
        return f"{max(minutes, 1):.0f} min"
    if minutes < 48 * 60:
        return f"{minutes / 60:.0f} h"
    return f"{minutes / 1440:.0f} days" if minutes < 60 * 1440 else "-"


def test_of_the_loops_benchmark():
    points = load(REPORTS / "bench" / "loop.json")["points"]
    autoencoder, denoiser = (
        next(x for x in points if (x["training"], x["train_batch_size"]) == (name, 32))
        for name in ("autoencoder", "denoiser")
    )
    ratio = f"{autoencoder['ratio_median']:.2f}"
    assert f"at {ratio} of the rate" in prose("guides/losses.md")
    page = "guides/performance.md"
    for label, point, key in (
        ("training an autoencoder", autoencoder, "ratio_median"),
        ("training a denoiser", denoiser, "ratio_median"),
        ("operations of an autoencoder's", autoencoder, "product_ratio_median"),
        ("operations of a denoiser's", denoiser, "product_ratio_median"),
    ):
        assert f"| {point[key]:.2f} |" in row(page, label)
    for name in ("autoencoder", "denoiser"):
        rates = [x["trainer_images_per_second"] for x in points if x["training"] == name]
        shown = " | ".join(f"{median(rate):.0f}" for rate in rates)
        assert f"| {shown} |" in row(page, f"{name} of Fashion-MNIST")
    products = [
        f"{sum(share for name, share in shares if 'convolution' in name or name == 'mm'):.2f}"
        for shares in (x["bare_step_shares"].items() for x in (autoencoder, denoiser))
    ]
    assert f"matrix products take {' and '.join(products)} of its time" in prose(page)
    assert min(autoencoder["ratio_median"], denoiser["ratio_median"]) >= 0.97


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def test_of_the_space_benchmark():
    points = {
        (x["denoiser"].removeprefix("attention at "), x["resolution"]): x
        for x in load(REPORTS / "bench" / "space.json")["points"]
    }
    page = "guides/performance.md"
    for (level, resolution), point in points.items():
        cells = []
        for kind in ("step", "training_step"):
            timed = times(point[f"{kind}_ratio_median"]) if f"{kind}_ratio_median" in point else "-"
            cells.append(f"{timed} ({times(point[f'{kind}_operations_ratio'])})")
        activations = [point[f"{x}_training_step_activations_mb"] for x in ("pixels", "latents")]
        cells.append(times(activations[0] / activations[1]))
        images = point["images"].values()
        cells += [times(x["ratio"]) if "ratio" in x else "-" for x in images]
        assert f"| {level}, {resolution} pixels | {' | '.join(cells)} |" in read(page)
    middle, large = points["the lowest level", 256], points["the lowest level", 512]
    rates = [
        f"{point['pixels_step_operations'] / median(point['pixels_step_seconds']) / 1e9:.0f}"
        for point in (large, middle)
    ]
    rate = f"pixels then makes {rates[0]} billion operations a second, at 256 pixels {rates[1]}."
    assert rate in prose(page)
    assert f"a step is {middle['step_ratio_median']:.0f} times faster on latents" in prose(
        "README.md"
    )
    assert all(points[x, 256]["images"]["base-fast"]["ratio"] >= 40 for x, _ in points)


def test_of_the_space_benchmark_with_a_larger_batch():
    report = load(REPORTS / "bench" / "space-batch-16.json")
    low, every = report["points"]
    assert {x["resolution"] for x in report["points"]} == {256} and report["batch_size"] == 16
    sentence = (
        f"a step is {times(low['step_ratio_median'])} times faster on latents with attention at "
        f"the lowest level ({times(low['step_operations_ratio'])} times fewer operations), and "
        f"{times(every['step_ratio_median'])} times with attention at every level "
        f"({times(every['step_operations_ratio'])})"
    )
    assert sentence in prose("guides/performance.md")
    for point in (low, every):
        assert point["step_ratio_median"] >= 0.85 * point["step_operations_ratio"]


@pytest.mark.parametrize("name", ["sampler", "sampler-photos-64"])
def test_of_the_samplers(name):
    report, page = load(REPORTS / "bench" / f"{name}.json"), "guides/sampling.md"
    points = {(x["sampler"], x["num_inference_steps"]): x for x in report["points"]}
    steps = sorted({number for _, number in points})
    assert f"| steps | {' | '.join(map(str, steps))} |" in read(page)
    for sampler in {name for name, _ in points}:
        cells = (
            f"{x['fd']:.0f} ({x['evaluations_per_image']:.0f}, {x['images_per_second_median']:.0f})"
            for x in (points[sampler, number] for number in steps)
        )
        assert f"| `{sampler}` | {' | '.join(cells)} |" in read(page)
    images = f"FD of {report['num_images']:,} images ({report['real_fd']:.0f} of as many real ones)"
    unipc, euler = points["unipc", 8], points["euler", 20]
    assert unipc["fd"] <= euler["fd"]
    assert unipc["evaluations_per_image"] / euler["evaluations_per_image"] == pytest.approx(
        0.4, 0.05
    )
    assert images in prose(page)


def test_of_emoji_by_their_names():
    report, page = load(REPORTS / "words.json"), prose("guides/captions.md")
    own = read_model_facts(RELEASED / "emoji-words")
    metrics, count = own.metrics, len(report["captions"])
    weights = own.weights["unet"]
    first, real = (sum(x[key] <= 5 for x in report["captions"]) for key in ("rank", "real_rank"))
    for figure in (
        f"trained in {own.training['seconds'] / 60:.0f} minutes",
        f"{weights.parameters / 1e6:.1f} M weights, {weights.size_bytes / 1e6:.1f} MB",
        f"{count} of its {own.training['held_out_images']} held-out combinations",
        f"of {first} of them the caption is among the first five of {report['num_captions']}",
        f"so it is of {real} of the held-out images",
        f"in the first five for {metrics['retrieval_recall_at_5']:.2f} of its images, and for "
        f"{metrics['real_retrieval_recall_at_5']:.2f} of the held-out images",
    ):
        assert figure in page, figure
    assert first >= count / 2


def test_of_the_page():
    report, page = load(REPORTS / "page" / "page.json"), read("guides/hub.md")
    size = sum(x["bytes"] for x in report["graphs"].values()) / 1e6
    for figure in (
        f"has {size:.1f} MB",
        f"on {report['cpu_cores']} CPU cores",
        f"loads in {report['load_seconds']:.1f} seconds",
        f"one picture in {report['seconds_to_one_picture']:.1f} seconds",
        f"all {report['classes']} classes in {report['seconds_to_every_class']:.1f} seconds",
        f"in {report['num_inference_steps']} steps",
    ):
        assert figure in " ".join(page.split())


@pytest.mark.parametrize("path", sorted((REPORTS / "pixels").glob("*.json")), ids=lambda x: x.stem)
def test_of_equal_minutes(path):
    report = load(path)
    data, _, minutes = path.stem.rpartition("-")
    ways = ("latents", "pixels")
    cells = (
        " and ".join(f"{report[f'{way}_images'] / 1000:.0f}" for way in ways),
        " and ".join(f"{report[f'{way}_fd']:.1f}" for way in ways) + f" ({report['real_fd']:.1f})",
        " and ".join(f"{report[f'{way}_label_agreement']:.2f}" for way in ways)
        + f" ({report['judge_real_accuracy']:.2f})",
    )
    link = f"[{data}, {minutes}](../reports/pixels/{path.name})"
    assert f"| {link} | {' | '.join(cells)} |" in read("guides/performance.md")
    assert report["minutes"] == int(minutes)


@pytest.mark.parametrize(
    "path", sorted((REPORTS / "variants").glob("start-*.json")), ids=lambda x: x.stem
)
def test_of_the_start_of_an_autoencoder(path):
    report = load(path)
    name = path.stem.removeprefix("start-")
    link = f"[{name}, {report['autoencoder_minutes']:g}](../reports/variants/{path.name})"
    for variant in report["variants"]:
        chroma = variant.get("reconstruction_chroma_r2")
        cells = (
            link,
            variant["initialization"],
            f"{variant['learning_rate']:g}",
            f"{variant['reconstruction_psnr_db']:.1f} dB",
            f"{variant['reconstruction_luma_r2']:.2f}" if chroma is not None else "-",
            f"{chroma:.2f}" if chroma is not None else "-",
            f"{variant['floor_fd']:,.0f}",
        )
        assert f"| {' | '.join(cells)} |" in read("guides/training.md")


CHANGED = {
    "kl_weight": "KL weight {}",
    "reconstruction_loss": "loss {}",
    "lr_warmup_ratio": "warm-up {}",
    "adam_weight_decay": "weight decay {}",
    "ema_decay": "EMA {}",
}


@pytest.mark.parametrize(
    "path", sorted((REPORTS / "variants").glob("defaults-*.json")), ids=lambda x: x.stem
)
def test_of_what_was_tried_for_the_defaults(path):
    report, page = load(path), "guides/training.md"
    images = path.stem.removeprefix("defaults-")
    for variant in report["variants"]:
        changed = [key for key in CHANGED if variant.get(key) != TUNED.get(key)]
        words = [CHANGED[key].format(variant[key]) for key in changed]
        cells = (
            f"[{images}](../reports/variants/{path.name})",
            f"{variant['latent_channels']}",
            f"{variant['learning_rate']:g}",
            f"{variant['train_batch_size']}",
            "the earlier defaults" if variant["name"] == "earlier" else ", ".join(words) or "-",
            f"{variant['reconstruction_psnr_db']:.1f} dB",
            f"{variant['reconstruction_luma_r2']:.2f}",
            f"{variant['reconstruction_chroma_r2']:.2f}",
            f"{variant['floor_fd']:,.0f}",
        )
        assert f"| {' | '.join(cells)} |" in read(page), cells
    assert f"`{images}` had {report['autoencoder_minutes']:g} minutes" in prose(page)
    psnr = {x["name"]: x["reconstruction_psnr_db"] for x in report["variants"]}
    more = [f"{psnr[name] - psnr['earlier']:.1f} dB" for name in ("c4-0.003", "c8-0.003")]
    assert f"`{images}` {more[0]} with 4 latent channels, and {more[1]} with 8" in prose(page)


def test_of_what_was_tried_for_small():
    name, page = "small-photos-32.json", "guides/training.md"
    report = load(REPORTS / "variants" / name)
    for x in report["variants"]:
        cells = (
            f"{x['learning_rate']:g}",
            f"{x['train_batch_size']}",
            f"{x['autoencoder_steps']:,}",
            f"{x['reconstruction_psnr_db']:.1f} dB",
            f"{x['reconstruction_luma_r2']:.2f}",
            f"{x['reconstruction_chroma_r2']:.2f}",
            f"{x['floor_fd']:,.0f}",
        )
        assert f"| {' | '.join(cells)} |" in read(page), cells
    assert f"photographs of 32 pixels, {report['autoencoder_minutes']} minutes of" in prose(page)
    best = max(report["variants"], key=lambda x: x["reconstruction_psnr_db"])
    assert best["floor_fd"] == min(x["floor_fd"] for x in report["variants"])
    own = DEFAULTS[0]["small"]
    rate, batch = own.learning_rate, own.train_batch_size
    assert (best["learning_rate"], best["train_batch_size"]) == (rate, batch)
    assert f"So `small` begins with {rate:g} at a batch of {batch}" in prose(page)


def test_of_the_channels_of_photographs():
    report = load(REPORTS / "variants" / "channels-photos-32.json")
    page = "guides/choosing_latent.md"
    for variant in report["variants"]:
        cells = (
            f"{variant['latent_channels']}",
            f"{variant['reconstruction_psnr_db']:.1f} dB",
            f"{variant['floor_fd']:.0f}",
            f"{variant['generated_fd']:.0f}",
        )
        assert f"| {' | '.join(cells)} |" in read(page)
    minutes = [f"{report[f'{x}_minutes']:g} minutes" for x in ("autoencoder", "denoiser")]
    assert f"autoencoders of {minutes[0]} and denoisers of {minutes[1]} of one" in prose(page)
    assert f"{report['num_images']:,} images without guidance" in prose(page)
    assert f"(real images {report['real_fd']:.0f};" in prose(page)


def test_of_what_was_tried_for_the_denoiser():
    page, found = "guides/recipes.md", {}
    for half in ("objective", "network"):
        report = load(REPORTS / "variants" / f"{half}-fashion-mnist.json")
        assert (report["denoiser_minutes"], report["num_images"]) == (8, 2000)
        assert f"real images {report['real_fd']:.0f}, a perfect denoiser" in prose(page)
        found |= {variant["name"]: variant for variant in report["variants"]}
    for variant in found.values():
        cells = (
            f"{variant['denoiser_parameters'] / 1e6:.2f} M",
            f"{variant['denoiser_steps']:,}",
            f"{variant['denoiser_held_out_loss']:.3f}",
            f"{variant['generated_fd']:.0f}",
            f"{variant['guided_generated_fd']:.0f}",
        )
        assert f" | {' | '.join(cells)} |" in read(page), variant["name"]
        assert f"{variant['floor_fd']:.0f}" == "101"
    fds = {name: (x["generated_fd"], x["guided_generated_fd"]) for name, x in found.items()}
    assert list(sorted(fds, key=fds.get))[:3] == ["contrastive", "96-96-attention", "64-112"]
    twice = [abs(a - b) for a, b in zip(fds["recipe"], fds["64-128"], strict=True)]
    assert f"differs by {max(twice):.0f}" in prose(page)
    spread = max(
        x[f"{guided}generated_fd_spread"] for x in found.values() for guided in ("", "guided_")
    )
    assert f"of a row differ by up to {spread:.0f}" in prose(page)
    steps = found["96-96-attention"]["denoiser_steps"] / found["64-128"]["denoiser_steps"]
    assert f"{steps:.2f}" == "0.76" and "with three quarters of the steps" in prose(page)


def test_of_equivariance():
    names = {"fashion-mnist": "Fashion-MNIST", "photos-64": "photographs"}
    reports = [load(REPORTS / "variants" / f"equivariance-{name}.json") for name in names]
    page, prose_of_page = read("guides/losses.md"), prose("guides/losses.md")
    for report, images in zip(reports, names.values(), strict=True):
        for variant in report["variants"]:
            cells = (
                images,
                f"{variant['equivariance_weight']:g}",
                f"{variant['autoencoder_steps']:,}",
                f"{variant['reconstruction_psnr_db']:.1f} dB",
                f"{variant['denoiser_held_out_loss']:.2f}",
                f"{variant['floor_fd']:.0f}",
                f"{variant['generated_fd']:,.0f}",
            )
            assert f"| {' | '.join(cells)} |" in page
        without, *others = report["variants"]
        assert all(x["generated_fd"] > without["generated_fd"] for x in others)
        assert f"{without['autoencoder_steps'] / others[0]['autoencoder_steps']:.1f}" == "1.4"
        losses = [x["denoiser_held_out_loss"] for x in report["variants"]]
        assert losses == sorted(losses, reverse=True)
    minutes = [[report[f"{x}_minutes"] for x in ("autoencoder", "denoiser")] for report in reports]
    assert minutes == [[5, 10], [12, 12]]
    assert "of 5 minutes and denoisers of 10 on Fashion-MNIST" in prose_of_page
    assert "a step of the autoencoder took 1.4 times as long" in prose_of_page
    assert "of 12 and 12 on 10,000 photographs" in prose_of_page
    real = " and ".join(f"{report['real_fd']:.0f}" for report in reports)
    assert f"of {reports[0]['num_images']:,} images without guidance (real images {real};" in (
        prose_of_page
    )


def test_of_the_batch():
    report, page = load(REPORTS / "variants" / "batch.json"), "guides/performance.md"
    for variant in report["variants"]:
        cells = (
            f"{variant['train_batch_size']}",
            f"{variant['learning_rate']:g}",
            f"{variant['denoiser_train_images_per_second']:.0f}",
            f"{variant['denoiser_held_out_loss']:.3f}",
            f"{variant['generated_fd']:.1f}",
        )
        assert f"| {' | '.join(cells)} |" in read(page)
    assert f"trained {report['denoiser_minutes']:g} minutes of one core" in prose(page)
    assert f"of {report['num_images']:,} images without guidance" in prose(page)
    assert f"(real images {report['real_fd']:.1f})" in prose(page)


def test_of_the_minutes_of_the_autoencoder_of_photographs():
    report = load(REPORTS / "pixels" / "photos-64-60.json")
    assert (
        f"it trained for {report['latents_autoencoder_minutes']:.0f} of the 60 minutes and saw "
        f"{report['latents_autoencoder_images'] / 1000:.0f} thousand images"
        in prose("guides/performance.md")
    )


def test_of_the_floor_of_a_small_autoencoder():
    report = load(REPORTS / "pixels" / "fashion-mnist-60.json")
    assert (
        f"after {report['latents_autoencoder_minutes']:.0f} of the 60 minutes, a perfect denoiser "
        f"would still have an FD of {report['latents_floor_fd']:.1f}"
    ) in prose("guides/performance.md")


def test_of_the_start():
    report = load(REPORTS / "bench" / "start.json")
    text = prose("guides/performance.md")
    assert f"`hf-latent --help` takes {report['help_seconds_median']:.2f} s" in text
    assert f"`import hf_latent` {report['import_seconds_median']:.2f} s" in text
    assert f"`hf-latent generate` of one image {report['generate_seconds_median']:.1f} s" in text


def test_of_the_caches_benchmark():
    report = load(REPORTS / "bench" / "cache.json")
    memory = report["reading_large_anonymous_memory_mb"]
    large = f"{report['reading_large_latents']:,}"
    page = "guides/latents.md"
    expected = {
        "random batches of 50,000": f"{report['reading_ratio_median']:.2f} of the rate",
        f"random batches of {large}": f"{report['reading_large_ratio_median']:.2f} of the rate",
        "a stream": f"{report['reading_stream_ratio_median']:.2f} and "
        f"{report['reading_large_stream_ratio_median']:.2f} of the rate",
        "growth": f"{max(memory) - memory[0]:.0f} MB",
        "encoding with preset": f"{report['encoding_small_ratio_median']:.2f} of the rate",
        "encoding with `fashion": f"{report['encoding_ratio_median']:.2f} of the rate",
        "training": f"{report['training_ratio_median']:.2f} times as fast",
    }
    for start, figure in expected.items():
        assert row(page, start).endswith(f"| {figure} |"), start
    reading = f"| {report['reading_ratio_median']:.2f} |"
    assert reading in row("guides/performance.md", "reading 50,000")
    assert f"| {report['encoding_ratio_median']:.2f} |" in row("guides/performance.md", "encoding")
    assert min(report["reading_ratio_median"], report["reading_large_ratio_median"]) >= 0.8
    assert min(report["encoding_ratio_median"], report["encoding_small_ratio_median"]) >= 0.9
    assert report["reading_large_latents"] >= 1_000_000


def test_of_the_fast_decoder():
    report, page = load(REPORTS / "decoders.json"), "guides/choosing_latent.md"
    steps = list(report["step_gflops"].values())
    fewer = {}
    for preset, decoder in report["decoder_gflops"].items():
        (half, *_) = (x for x in report["half"] if x["preset"] == preset)
        first, second = (f"{decoder / step['latents']:.1f}" for step in steps)
        line = f"| `{preset}` | {decoder:.1f} GFLOP | {first} and {second} |"
        assert line in read(page), line
        assert f"`{preset}` reaches {half['held_out_psnr_db']:.1f} dB" in prose(page)
        image = decoder + 20 * steps[0]["latents"]
        fewer[preset] = f"{20 * steps[0]['pixels'] / image:.0f} times fewer"
    assert f"{fewer['base']} operations" in prose(page)
    assert f"{fewer['base-fast']} with `base-fast`" in prose(page)
    rates = {
        x["preset"]: x["autoencoder"]["images_per_second"]
        for x in load(REPORTS / "presets.json")["presets"]
        if x["resolution"] == 256
    }
    ratio = f"trains {rates['base-fast'] / rates['base']:.0f} times as many images"
    assert f"On 2 CPU cores `base-fast` {ratio}" in prose(page)
    assert half["max_train_steps"] * half["train_batch_size"] == 12_800


def test_of_the_photographs():
    folder, page = REPORTS / "photographs-64", "guides/recipes.md"
    metrics, training = (
        [load(folder / name / f"{report}.json") for name in ("f4", "f8")]
        for report in ("metrics", "training")
    )
    for row_start, figure in {
        "autoencoder: PSNR": lambda m, t: (
            f"{t['autoencoder_held_out_psnr_db']:.1f} dB, "
            f"{t['autoencoder_held_out_bicubic_psnr_db']:.1f} dB"
        ),
        "R2 of luma, chroma": lambda m, t: (
            f"{t['autoencoder_held_out_luma_r2']:.3f}, {t['autoencoder_held_out_chroma_r2']:.3f}"
        ),
        "thousands of images seen": lambda m, t: (
            f"{t['autoencoder_images_seen'] / 1e3:.0f}, {t['images_seen'] / 1e3:,.0f}"
        ),
        "FD of 5,000 images (real 91)": lambda m, t: f"{m['fd']:.0f}",
        "FD with a perfect denoiser": lambda m, t: f"{m['floor_fd']:.0f}",
        "precision, recall (real 0.71, 0.70)": lambda m, t: (
            f"{m['precision']:.2f}, {m['recall']:.2f}"
        ),
        "label agreement (real 0.68)": lambda m, t: f"{m['label_agreement']:.2f}",
        "right about real images if trained on these (on real ones 0.62)": lambda m, t: (
            f"{m['train_on_generated_test_on_real_accuracy']:.2f}"
        ),
        "images a second": lambda m, t: f"{m['num_images'] / m['sampling_seconds']:.0f}",
        "the limit": lambda m, t: m["limit"],
    }.items():
        cells = " | ".join(map(figure, metrics, training))
        assert row(page, row_start).endswith(f"| {cells} |"), row_start
    f4, trained = metrics[0], training[0]
    keys = ("fd", "precision", "recall", "train_on_real_test_on_real_accuracy")
    real = [f4[x if x.startswith("train") else f"real_{x}"] for x in keys]
    assert [f"{x:.2f}" for x in real[1:]] == ["0.71", "0.70", "0.62"] and f"{real[0]:.0f}" == "91"
    assert f4["num_images"] == 5000 and (f4["guidance_scale"], f4["num_inference_steps"]) == (2, 8)
    assert not any(x["memorisation_found"] for x in metrics)
    assert f4["reference_fingerprint"] == metrics[1]["reference_fingerprint"]
    for figure in (
        f"keeps {trained['autoencoder_held_out_psnr_db']:.1f} dB and "
        f"{trained['autoencoder_held_out_chroma_r2']:.2f} of the colours",
        f"FD is {f4['fd']:.0f} (real images {f4['real_fd']:.0f})",
        f"in {f4['label_agreement']:.2f} of the images, and is right for "
        f"{f4['label_agreement_judge_real_accuracy']:.2f} of real ones",
    ):
        assert figure in prose("README.md"), figure
    # The recipe is that of f4, and each report says what it was trained with.
    for part, prefix in (("vae", "autoencoder_"), ("unet", "")):
        recipe = yaml.safe_load(
            (ROOT / "train_scripts/recipes/photographs-64" / f"{part}.yaml").read_text()
        )
        for x in training:
            assert x[f"{prefix}train_batch_size"] == recipe["train_batch_size"]
            assert x[f"{prefix}seconds"] == pytest.approx(
                60 * recipe["max_train_minutes"], rel=0.01
            )
            assert x[f"{prefix}horizontal_flip"] is recipe["horizontal_flip"]
    assert [x["latent_shape"] for x in training] == [[8, 16, 16], [8, 8, 8]]


def test_of_the_sweep():
    folder, page = REPORTS / "sweep" / "fashion-mnist", "guides/choosing_latent.md"
    report = load(folder / "report.json")
    assert (folder / "report.md").read_text() == render_sweep(report)
    for pair in report["pairs"]:
        figures = (
            f"{pair['rate_bits_per_image']:.0f} bits",
            f"{pair['reconstruction_psnr_db']:.1f} dB",
            f"{pair['floor_fd']:.1f}",
            f"{pair['generated_fd']:.1f} ± {pair['generated_fd_spread'] / 2:.1f}",
            f"{pair['sampling_images_per_second']:.0f}",
        )
        star = " *" if pair["name"] in report["pareto_front"] else ""
        name = f"**{pair['name']}**" if pair["name"] == report["recommended"] else pair["name"]
        assert row(page, f"{name}{star} |").endswith(f"| {' | '.join(figures)} |")
    assert f"in {report['last_run_minutes']:.0f} minutes" in prose(page)
    assert report["last_run_minutes"] <= 25


def test_of_ifid():
    report, page = load(REPORTS / "ifid.json"), "guides/choosing_latent.md"
    sweep = load(REPORTS / "sweep" / "fashion-mnist" / "report.json")
    for kept, pair in zip(report["pairs"], sweep["pairs"], strict=True):
        assert pair | kept == pair | {"ifid": kept["ifid"]}
    for key, name in {"ifid": "iFID", "reconstruction_fd": "rFD", "floor_fd": "FD floor"}.items():
        found = report["rank_correlations"][key]
        low, high = found["interval"]
        cells = f"{found['spearman_rho']:.2f} | {low:.2f} to {high:.2f} | {found['p_value']:.3f}"
        assert row(page, f"{name} of the nine").endswith(f"| {cells} |")


def test_of_the_inspection():
    folder, page = REPORTS / "inspect" / "fashion-mnist-f4", "guides/evaluating.md"
    report = load(folder / "report.json")
    assert report["verdict"] == "fine"
    yardsticks = {x["name"]: x for x in report["yardsticks"]}
    bands = report["band_kept"]
    expected = {
        "lowest, highest spatial frequencies | 1": f"{bands[0]:.1%}, {bands[-1]:.1%}",
        "layout, edges": f"{report['layout_agreement']:.1%}, {report['edge_agreement']:.1%}",
        "added pixel noise | 1": f"{report['noise_survival']:.1%}",
        f"PSNR at {report['budget_bytes']:.0f}": f"{yardsticks['autoencoder']['psnr_db']:.1f} dB; "
        f"{yardsticks['JPEG']['psnr_db']:.1f} dB",
    }
    for start, figures in expected.items():
        assert row(page, start).endswith(f"| {figures} |"), start
    assert (folder / "report.md").read_text() == render_report(report)


def test_of_the_evaluation():
    x, page = load(REPORTS / "evaluate" / "quickstart" / "metrics.json"), "guides/evaluating.md"
    assert not x["memorisation_found"]
    expected = {
        "FD (with a perfect": f"{x['fd']:.2f} | {x['real_fd']:.2f}",
        "KID | 0": f"{x['kid']:.5f} | {x['real_kid']:.5f}",
        "precision, recall": f"{x['precision']:.3f}, {x['recall']:.3f} | "
        f"{x['real_precision']:.3f}, {x['real_recall']:.3f}",
        "density, coverage": f"{x['density']:.3f}, {x['coverage']:.3f} | "
        f"{x['real_density']:.3f}, {x['real_coverage']:.3f}",
        f"label agreement at guidance {x['guidance_scale']:g}": f"{x['label_agreement']:.3f} | "
        f"{x['label_agreement_judge_real_accuracy']:.3f}",
        "accuracy on real": f"{x['train_on_generated_test_on_real_accuracy']:.3f} | "
        f"{x['train_on_real_test_on_real_accuracy']:.3f}",
        "copies of": f"{x['memorisation_latents_copies']} | "
        f"{x['memorisation_latents_held_out_copies']} of {x['held_out_images']:,} held-out ones",
    }
    for start, figures in expected.items():
        assert row(page, start).endswith(f"| {figures} |"), start
    assert f"| {x['num_images']:,} images | generated | real |" in read(page)
    assert f"(with a perfect denoiser: {x['floor_fd']:.2f})" in read(page)


def test_of_the_size_that_features_are_measured_at():
    found = load(REPORTS / "feature_size.json")["accuracies"]
    photographs, clothes = (
        [found[data][str(size)] for size in (EfficientNetVectors.MINIMUM_SIZE, 32)]
        for data in ("photos-64", "fashion_mnist")
    )
    page = prose("guides/evaluating.md")
    assert (
        f"right for {photographs[0]:.2f} of held-out photographs of 32 pixels in 20 classes, and "
        f"for {photographs[1]:.2f} at their own size; of Fashion-MNIST's for {clothes[0]:.2f} and "
        f"{clothes[1]:.2f}" in page
    )


def test_all_figures_of_features_are_of_enlarged_images():
    reports = [*REPORTS.rglob("*.json"), *RELEASED.glob("*/metrics.json")]
    texts = [path.read_text() for path in reports]
    assert sum("own size of at least 96 pixels" in text for text in texts) > 20
    assert not any("own size of at least 32 pixels" in text for text in texts)


def test_of_the_objectives():
    page, found = "guides/recipes.md", {}
    for path in (REPORTS / "objectives").glob("*/metrics.json"):
        x, training = load(path), load(path.with_name("training.json"))
        assert training["unet_weights_sha256"] == x["unet_weights_sha256"]
        assert training["objective"] == path.parent.name
        assert training["torch_threads"] == 1
        assert (x["sampler"], x["num_inference_steps"]) == ("UniPCMultistepScheduler", 8)
        found[path.parent.name] = x | {"steps": training["steps"]}
        cells = (
            path.parent.name,
            f"{training['seconds'] / 60:.1f}",
            f"{training['steps']:,}",
            f"{x['denoiser_evaluations_per_image']}",
            f"{x['fd']:.0f}",
            f"{x['recall']:.3f}",
            f"{x['label_agreement']:.3f}",
            f"{x['train_on_generated_test_on_real_accuracy']:.3f}",
        )
        assert f"| {' | '.join(cells)} |" in read(page)
    assert found.keys() == {"flow", "epsilon", "v_prediction", "sample"}
    assert len({x["comparable_if_equal"] for x in found.values()}) == 1
    keys = "fd", "recall", "train_on_generated_test_on_real_accuracy"
    for key, sign in zip(keys, (1, -1, -1), strict=True):
        order = sorted(found, key=lambda name, key=key, sign=sign: sign * found[name][key])
        assert order[:2] == ["epsilon", DenoiserConfig.objective]
    assert min(found, key=lambda name: found[name]["label_agreement"]) == "epsilon"
    steps = found["flow"]["steps"] / found["epsilon"]["steps"]
    assert round(1 / (1 - steps)) == 7 and "a seventh fewer steps" in prose(page)
    real = found["flow"]["real_fd"], found["flow"]["num_images"]
    assert f"FD of {real[1]:,} images (as many real ones: {real[0]:.0f})" in prose(page)


def test_of_averages_and_guides():
    averages, guides = (load(REPORTS / f"{name}.json") for name in ("averages", "guides"))
    page = read("guides/training.md")
    lengths = {x["sigma_rel"]: [] for x in averages["averages"]}
    for x in averages["averages"]:
        lengths[x["sigma_rel"]].append(f"{x['generated_fd']:.1f}")
    for length, cells in lengths.items():
        name = "EMA 0.999" if length is None else f"`--sigma_rel {length:g}`"
        assert f"| {name} | {' | '.join(cells)} |" in page
    page = read("guides/sampling.md")
    own = [x for x in averages["averages"] if x["sigma_rel"] is None]
    for x in (*own, *averages["others"], *guides["guides"]):
        guide = "dropped labels" if "guidance_scale" in x else "-"
        if "guide_step" in x:
            guide = f"the model at step {x['guide_step']:,}"
        elif "guide_steps" in x:
            size = f"{guides['guide_parameters'] / 1e6:.2f} M weights, {x['guide_steps']:,} steps"
            guide = f"{size}, {x['guide_label_dropout']:.0%} of the labels dropped"
        scale, levels = "-", "-"
        if "guidance_scale" in x:
            highest = x["guidance_interval"][1]
            scale = f"{x['guidance_scale']:g}"
            levels = "all" if highest == 1 else f"below {highest:g}"
        assert f"| {guide} | {scale} | {levels} | {x['generated_fd']:.1f} |" in page
    (saved,) = (
        x for x in guides["guides"] if (x["guide_steps"], x["guidance_scale"]) == (2000, 1.5)
    )
    best = min(x["generated_fd"] for x in guides["guides"])
    assert saved["generated_fd"] - best < saved["generated_fd_spread"], "as good as the best"
    for page in ("guides/training.md", "guides/sampling.md"):
        assert f"{averages['steps']:,} steps" in prose(page)


def test_of_distillation():
    report, page = load(REPORTS / "distillation.json"), read("guides/sampling.md")

    def steps(count: int) -> str:
        return f"{count} step{'s' * (count > 1)}"

    for x in (*report["teacher"], *report["students"]):
        name, origin, minutes = f"the teacher, {steps(x['num_inference_steps'])}", "-", "-"
        if "minutes" in x:
            name, minutes = f"a student of {steps(x['num_inference_steps'])}", f"{x['minutes']:g}"
            origin = "the teacher, 8 steps"
            if x["teacher"]:
                origin = f"the student of {steps(int(x['teacher'][0]))}"
        figures = f"{x['denoiser_evaluations_per_image']} | {x['generated_fd']:.0f}"
        assert f"| {name} | {origin} | {minutes} | {figures} |" in page
    images = f"FD of {report['num_images']:,} images, the mean of two seeds"
    real = f"(as many real images {report['real_fd']:.0f};"
    assert f"{images} {real}" in prose("guides/sampling.md")


def test_of_students_of_10_000_images():
    page, reports = read("guides/sampling.md"), REPORTS / "evaluate"
    found = {
        "`fashion-mnist`": RELEASED / "fashion-mnist",
        "`fashion-mnist-4step`": RELEASED / "fashion-mnist-4step",
        "a student of 2 steps": reports / "student-2",
        "a student of 1 step": reports / "student-1",
    }
    taught = "train_on_generated_test_on_real_accuracy"
    for name, folder in found.items():
        x = load(folder / "metrics.json")
        assert x["num_images"] == 10_000
        cells = (
            f"{x['denoiser_evaluations_per_image']}",
            f"{x['fd']:.1f} | {x['recall']:.2f}",
            f"{x['label_agreement']:.3f} | {x[taught]:.3f}",
        )
        assert f"| {name} | {' | '.join(cells)} |" in page
        perfect = f"FD {x['floor_fd']:.1f}, recall {x['floor_recall']:.2f}, label agreement"
        perfect += f" {x['floor_label_agreement']:.3f}, {x[f'floor_{taught}']:.3f};"
        assert perfect in prose("guides/sampling.md")
    seconds = load(RELEASED / "fashion-mnist-4step" / "training.json")["seconds"]
    assert f"learned for {seconds / 60:.0f} minutes" in page
