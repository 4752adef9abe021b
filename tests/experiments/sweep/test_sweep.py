import io
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from hf_latent.command import parse_config
from hf_latent.data.images import sources
from hf_latent.errors import UserError
from hf_latent.experiments.sweep import pair as sweep_pair
from hf_latent.experiments.sweep import plan as sweep_plan
from hf_latent.experiments.sweep import sweep as sweep_module
from hf_latent.experiments.sweep.config import SweepConfig
from hf_latent.experiments.sweep.report import render_plot, render_report
from hf_latent.output import remove_written
from hf_latent.training import denoiser_loop
from hf_latent.training.autoencoder_config import AutoencoderConfig
from tests import forked
from tests.conftest import ticking_clock
from tests.docs.test_commands import BIN, TICKING
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images, small_trainings

TICK_SECONDS = 0.05


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Sweep by a clock that moves a tick at each reading, so it takes equally long anywhere."""
    return sweep_module.sweep(config, now=ticking_clock(TICK_SECONDS))


@pytest.fixture(autouse=True, scope="module")
def small():
    """Narrow models, few held-out images, short vectors, and trainings of a few steps."""
    with small_trainings() as patch:
        patch.setattr(sweep_module, "load_feature_extractor", lambda name: ShortVectors())
        patch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
        patch.setattr(sweep_pair, "FOLD_SAMPLES", 20)
        patch.setattr(sweep_module, "HELD_OUT_IMAGES", 20)
        for module in (sweep_plan, sweep_pair):
            patch.setattr(module, "VALIDATION_IMAGES", 4)
        patch.setattr(sweep_plan, "divide_minutes", lambda minutes, pairs: (0.005, 0.008))
        yield


def record_trainings(patch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the trained runs, in order."""
    runs: list[str] = []

    def recorded(train):
        def run(config, splits, now):
            runs.append("/".join(Path(config.output_dir).parts[-2:]))
            return train(config, splits, now=now)

        return run

    for name in ("train_autoencoder", "train_denoiser"):
        patch.setattr(sweep_pair, name, recorded(getattr(sweep_pair, name)))
    return runs


@pytest.fixture
def trained(monkeypatch):
    return record_trainings(monkeypatch)


def settings(output_dir: Path) -> SweepConfig:
    return SweepConfig(
        data="fashion_mnist",
        resize_mode="pad",
        max_train_samples=60,
        output_dir=str(output_dir),
        factors="4,8",
        latent_channels="2",
        num_images=20,
        num_inference_steps=2,
        max_minutes=10.0,
    )


@pytest.fixture
def config(tmp_path):
    return settings(tmp_path / "sweep")


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The report and the folder of a finished sweep, its trainings and its output; read only."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        trained = record_trainings(patch)
        report = sweep(settings(folder))
    return report, folder, trained, output.getvalue().splitlines()


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


ALL_RUNS = ["f4-c2/autoencoder", "f4-c2/denoiser", "f8-c2/autoencoder", "f8-c2/denoiser"]


def test_a_sweep_end_to_end(finished):
    report, folder, trained, output = finished
    assert trained == ALL_RUNS
    assert report == json.loads((folder / "report.json").read_text())
    assert sorted(x.name for x in folder.iterdir()) == [
        "f4-c2",
        "f8-c2",
        "plan.json",
        "report.json",
        "report.md",
        "sweep.png",
    ]
    for pair, factor in zip(report["pairs"], (4, 8), strict=True):
        assert pair == json.loads((folder / pair["name"] / "figures.json").read_text())
        check_pair(pair, factor)
    assert report["held_out_images"] == 20
    assert 0 < report["real_against_real_fd"] < report["pairs"][0]["generated_fd"]
    assert report["recommended"] in {"f4-c2", "f8-c2"}
    assert report["recommended"] in report["pareto_front"]
    assert output[0].startswith("fashion_mnist: 60 images to train on of 100")
    output = output[output.index("timing this machine") :]
    assert output[1].startswith("this machine needs at least ") and "of 10 given" in output[1]
    assert output[2].startswith("2 pairs: 0 s for each autoencoder")
    assert output[3].startswith("1/2 f4-c2: ") and output[3].endswith("minutes left at most")
    assert output[4].startswith("2/2 f8-c2: ") and output[4].endswith("0.0 minutes left at most")
    assert output[-3] == f"{folder}/report.md, sweep.png"
    words = shlex.split(output[-1])
    assert words[:2] == ["hf-latent", "train-autoencoder"]
    command = parse_config(AutoencoderConfig, words[2:])
    run = folder / report["recommended"] / "autoencoder"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("data", "resize_mode", "latent_channels", "block_out_channels", "preset"):
        assert getattr(command, name) == saved[name]
    assert command.kl_weight == pytest.approx(saved["kl_weight"], rel=1e-2)
    assert any(line.startswith(f"Choose {report['recommended']}: ") for line in output)
    # Only the length of the trainings depends on the machine; reports have their settings.
    settings = json.loads((folder / "f8-c2" / "autoencoder" / "report.json").read_text())
    assert settings["max_train_minutes"] == 0.005
    assert settings["reconstruction_loss"] == "l2"
    assert settings["kl_weight"] == pytest.approx(1.2e-3 / 32)
    for name in ("f4-c2", "f8-c2"):  # large files that are no longer needed are removed
        left = [
            x.name for part in ("autoencoder", "denoiser") for x in (folder / name / part).iterdir()
        ]
        assert not any(x.startswith("checkpoint") or x == "latents" for x in left), left
    check_renders(folder, report)


def check_pair(pair, factor):
    """Check the figures of one pair."""
    side = 32 // factor
    assert pair["latent_shape"] == [2, side, side]
    assert pair["compression_ratio"] == 1024 / (2 * side * side)
    for part, minutes, batch_size in (("autoencoder", 0.005, 16), ("denoiser", 0.008, 32)):
        assert pair[f"{part}_steps"] > 0
        assert pair[f"{part}_minutes"] == pytest.approx(minutes, abs=0.004)
        assert pair[f"{part}_train_images_per_second"] == pytest.approx(
            pair[f"{part}_steps"] * batch_size / (60 * pair[f"{part}_minutes"])
        )
        assert pair[f"{part}_parameters"] > 1000
    assert pair["autoencoder_parameters"] != pair["denoiser_parameters"]
    assert pair["reconstruction_images"] == 20
    assert 0 < pair["reconstruction_unpadded_psnr_db"] != pair["reconstruction_psnr_db"] > 0
    assert 0 < pair["rate_bits_per_image"] <= pair["kl_bits_per_image"]
    assert pair["rate_bits_per_pixel"] == pytest.approx(pair["rate_bits_per_image"] / 1024)
    one, two = pair["generated_fd_by_seed"]
    assert one != two
    assert pair["generated_fd"] == pytest.approx((one + two) / 2)
    assert pair["generated_fd_spread"] == pytest.approx(abs(one - two))
    assert pair["floor_fd"] > 0 and pair["reconstruction_fd"] > 0
    assert pair["denoiser_evaluations_per_image"] == 2
    assert pair["sampling_images_per_second"] > 0


def check_renders(folder, report):
    """Check that report.json has all that the text and the plot need."""
    markdown = (folder / "report.md").read_text()
    assert markdown == render_report(report)
    assert (folder / "sweep.png").read_bytes() == render_plot(report)
    assert f"Choose **{report['recommended']}**" in markdown
    for pair in report["pairs"]:
        assert f"{pair['generated_fd']:.2f}" in markdown
    assert Image.open(folder / "sweep.png").size[0] > 500
    assert "None" not in markdown and "nan" not in markdown


def test_samples_are_drawn_without_guidance_and_labelled_as_the_reference(config, monkeypatch):
    drawn, choose = [], sweep_module.RealImages.choose
    sample_images, chosen = sweep_pair.sample_images, []

    def recorded(pipeline, labels, count, seed, batch_size, *asked):
        drawn.append((labels, count, seed, *asked))
        return sample_images(pipeline, labels, count, seed, batch_size, *asked)

    def choosing(*arguments):
        chosen.append(choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(sweep_pair, "sample_images", recorded)
    monkeypatch.setattr(sweep_module.RealImages, "choose", choosing)
    sweep(replace(config, factors="8", seed=5))
    labels = chosen[0].subset(chosen[0].reference).labels.tolist()
    assert len(set(labels)) > 3
    assert drawn == [(labels, 20, 5, 1.0, 2, None), (labels, 20, 25, 1.0, 2, None)]


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_sweep_killed_in_a_denoisers_training_resumes_from_the_checkpoint(
    config, trained, finished, tmp_path, monkeypatch, has_checkpoint
):
    # The first pair is finished.
    shutil.copytree(
        finished[1], tmp_path / "sweep", ignore=shutil.ignore_patterns("f8*", "report*")
    )
    monkeypatch.setattr(sweep_pair, "CHECKPOINTING_STEPS", 1)
    save_checkpoint = denoiser_loop.save_checkpoint
    folder = tmp_path / "sweep"

    def killed(output_dir, *arguments):
        if has_checkpoint:
            save_checkpoint(output_dir, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(denoiser_loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(config)
    before = files(folder / "f4-c2"), files(folder / "f8-c2" / "autoencoder")
    plan = files(folder)["plan.json"]
    assert (folder / "f8-c2" / "denoiser" / "checkpoint-1").is_dir() == has_checkpoint
    monkeypatch.setattr(denoiser_loop, "save_checkpoint", save_checkpoint)
    report = sweep(config)
    assert trained == [*ALL_RUNS[2:], "f8-c2/denoiser"]
    assert [pair["name"] for pair in report["pairs"]] == ["f4-c2", "f8-c2"]
    assert files(folder)["plan.json"] == plan
    log = (folder / "f8-c2" / "training.log").read_text()
    assert log.count("resumed from") == log.count("denoiser/checkpoint-1") == has_checkpoint
    after = files(folder / "f8-c2" / "autoencoder")
    assert files(folder / "f4-c2") == before[0]
    # Only the finished training's checkpoint is removed at the end of the pair.
    assert after == {name: x for name, x in before[1].items() if "checkpoint-" not in name}
    assert report["pairs"][1]["denoiser_steps"] >= 1


def test_a_finished_sweep_trains_nothing_again(config, trained, finished, tmp_path):
    first, folder, *_ = finished
    shutil.copytree(folder, tmp_path / "sweep")
    before = files(tmp_path / "sweep" / "f8-c2")
    again = sweep(config)
    assert not trained
    assert files(tmp_path / "sweep" / "f8-c2") == before
    assert again["pairs"] == first["pairs"]
    assert again["real_against_real_fd"] == first["real_against_real_fd"]


def test_a_pair_that_fails_does_not_lose_the_others(
    config, trained, finished, tmp_path, monkeypatch, capsys
):
    # The second pair is finished.
    shutil.copytree(
        finished[1], tmp_path / "sweep", ignore=shutil.ignore_patterns("f4*", "report*")
    )
    train = sweep_pair.train_denoiser

    def failing(config, splits, now):
        if "f4-c2" in config.output_dir:
            raise UserError("the loss was not finite")
        return train(config, splits, now=now)

    monkeypatch.setattr(sweep_pair, "train_denoiser", failing)
    report = sweep(config)
    assert [pair["name"] for pair in report["pairs"]] == ["f8-c2"]
    assert report["failed_pairs"] == [{"name": "f4-c2", "error": "the loss was not finite"}]
    assert "1/2 f4-c2 failed: the loss was not finite" in capsys.readouterr().out
    assert (
        "- f4-c2 failed: the loss was not finite" in (tmp_path / "sweep" / "report.md").read_text()
    )
    monkeypatch.setattr(sweep_pair, "train_denoiser", train)
    report = sweep(config)  # tries only this pair again
    assert not report["failed_pairs"] and len(report["pairs"]) == 2
    assert trained == ["f4-c2/autoencoder", "f4-c2/denoiser"]
    with pytest.raises(UserError, match=r"a sweep of other settings: --seed 0 \(now 1\)"):
        sweep(replace(config, seed=1))


def test_if_every_pair_fails_the_error_has_the_first_reason(config, monkeypatch):
    def failing(config, splits, now):
        raise UserError("lost")

    monkeypatch.setattr(sweep_pair, "train_autoencoder", failing)
    with pytest.raises(UserError, match="no pair could be trained: f4-c2: lost"):
        sweep(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_minutes": 0.01}, "--max_minutes 0.01 leaves no time to train"),
        ({"num_images": 31}, "--num_images 31 needs 62 training images"),
        ({"factors": "4,32"}, "f32-c2 is not possible"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    config, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        sweep(replace(config, **changes))
    assert not (tmp_path / "sweep").exists()


def test_pairs_are_checked_before_the_timing(config, monkeypatch):
    monkeypatch.setattr(sweep_module, "make_plan", None)
    with pytest.raises(UserError, match="f32-c2 is not possible"):
        sweep(replace(config, factors="4,32"))


def test_a_folder_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "letter.txt").touch()
    with pytest.raises(UserError, match="has files in it"):
        sweep(config)


def test_a_second_sweep_of_the_folder_is_refused_at_once(config, trained, tmp_path):
    with FileLock(tmp_path / ".sweep.lock"), pytest.raises(UserError, match="another run is"):
        sweep(config)
    assert trained == [] and not Path(config.output_dir).exists()


def test_missing_figures_are_rendered(finished):
    one, two = finished[0]["pairs"]
    pairs = [one | {"generated_fd": None, "generated_fd_by_seed": [None, None]}, two]
    report = finished[0] | {"pairs": pairs}
    report |= {"pareto_front": [two["name"]], "recommended": two["name"]}
    assert " - |" in render_report(report)
    render_plot(report)
    report |= {"pairs": [report["pairs"][0]], "pareto_front": [], "recommended": None}
    assert "Nothing can be recommended" in render_report(report)
    render_plot(report)


def test_rgb_images_without_classes(config, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(60):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    report = sweep(
        replace(
            config,
            data=str(tmp_path / "images"),
            resolution=16,
            factors="4",
            num_images=10,
            num_seeds=2,
            max_train_samples=None,
            validation_fraction=0.3,
        )
    )
    (pair,) = report["pairs"]
    assert report["image_shape"] == [3, 16, 16]
    assert report["data"] == "images"
    assert pair["generated_fd_spread"] > 0 and math.isfinite(pair["generated_fd"])
    assert "PSNR unpadded" not in render_report(report)


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(60):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    flags = (
        f"--data {tmp_path}/images --resolution 16 --factors 2,4 --latent_channels 2 "
        f"--num_images 10 --num_inference_steps 2 --validation_fraction 0.3 --max_minutes 2.0 "
        f"--output_dir {tmp_path}/sweep"
    )
    command = [sys.executable, "-c", TICKING, "0.25", BIN / "hf-latent", "sweep", *flags.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    process = forked.start(command, env=environment)
    while not (tmp_path / "sweep" / "f4-c2" / "denoiser").is_dir():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "sweep" / "report.json").exists()
    before = files(tmp_path / "sweep" / "f2-c2")
    autoencoder = (tmp_path / "sweep" / "f4-c2" / "autoencoder.json").stat().st_mtime_ns
    process = forked.start(command, env=environment)
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert "1/2 f2-c2: " in output and "2/2 f4-c2: " in output
    assert files(tmp_path / "sweep" / "f2-c2") == before
    assert (tmp_path / "sweep" / "f4-c2" / "autoencoder.json").stat().st_mtime_ns == autoencoder
    check_renders(tmp_path / "sweep", json.loads((tmp_path / "sweep" / "report.json").read_text()))


def test_a_pairs_files_are_removed_and_no_others(finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "sweep")
    for pair in copy.glob("f*-c*"):
        (pair / "denoiser" / "notes.txt").write_text("mine")
        remove_written(pair, sweep_pair.PAIR_FILES)
        left = [path for path in pair.rglob("*") if path.is_file()]
        assert left == [pair / "denoiser" / "notes.txt"]
