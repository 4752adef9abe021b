"""Every command and every Python block of the README runs, with short settings."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_latent.evaluation.inspection.report import render_report
from hf_latent.experiments.sweep.report import render_report as render_sweep
from hf_latent.training.denoiser_config import DenoiserConfig
from tests import forked
from tests.hub.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROSE = " ".join(README.split())  # a figure may go over the end of a line
BIN = Path(sys.executable).parent
TRAINING = "--max_train_steps 2 --train_batch_size 4 --max_validation_samples 4 --preset tiny"
# Commands with a time limit go by a clock that every look at it moves on, on any machine alike.
TICKING = """
import itertools, runpy, sys, time
looks, seconds = itertools.count(), float(sys.argv[1])
time.perf_counter = lambda: next(looks) * seconds
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SECONDS_A_LOOK = {"quickstart": "1.5", "sweep": "0.2"}
SHORT = {
    "quickstart": "--max_minutes 2 --max_train_samples 300 --evaluation_images 20",
    "generate": "--num_inference_steps 2",
    "inspect": "--max_images 4",
    "evaluate": "--num_images 10 --num_inference_steps 1 --cache_dir vectors",
    "sweep": "--max_minutes 3 --factors 4 --channels 4 --resolution 32 "
    "--num_images 20 --num_inference_steps 1",
    "encode_latents.py": "",
    "synthesize_ema.py": "",
    "export": "",
    "push": "",
    "train_vae.py": TRAINING,
    "train_unet.py": TRAINING,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


def part(command: str) -> str:
    """Return which commands one goes with: later ones of a part need what earlier ones made."""
    if "quickstart" in command or command == "hf-latent generate":
        return "quickstart"
    return "recipe" if "fashion_mnist-32" in command else "own images"


def shorten(command: str) -> list[str]:
    """Return the words of a command, with short settings; the recipe's go through accelerate."""
    words = shlex.split(command)
    (program,) = (word for word in SHORT if any(w.split("/")[-1] == word for w in words))
    if words[:2] == ["accelerate", "launch"] and part(command) != "recipe":
        words = [sys.executable, *words[2:]]
    elif words[0] == "python":
        words[0] = sys.executable
    else:
        words[0] = str(BIN / words[0].split("/")[-1])
    if part(command) == "recipe":  # the full set is not on every machine
        words += ["--data", "fashion_mnist", "--max_train_samples", "20"]
    if seconds := SECONDS_A_LOOK.get(program):
        words = [sys.executable, "-c", TICKING, seconds, *words]
    return [*words, *SHORT[program].split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a reader would stand: the checkout's scripts, and a folder of images."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "train_scripts").symlink_to(ROOT / "train_scripts")
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / "path" / "to" / "images" / label).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"path/to/images/{label}/{i}.png")
    return folder


def run(arguments: list[str], folder: Path, **variables: str) -> str:
    # With one thread: two of one program wait for each other, and for the tests beside them.
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | variables
    process = forked.run(arguments, cwd=folder, env=environment)
    assert process.returncode == 0, f"{arguments}\n{process.stderr[-2000:]}"
    return process.stdout


def push_to_loopback_hub(arguments: list[str], folder: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_token("hf_reader", "user")
        run(arguments, folder, **hub.environment(folder, "hf_reader"), HF_HUB_OFFLINE="0")
        kind = "models" if "--model" in arguments else "datasets"
        files = hub.repos[kind, "user/name"].files("main")
    whole = {
        "datasets": {"README.md", "manifest.json", "train-000000.safetensors"},
        "models": {"README.md", "model_index.json", "pipeline.py", "unet/config.json"},
    }
    assert whole[kind] <= files.keys()


def test_the_two_commands_are_the_ones_that_ci_and_newcomers_run():
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e"
    first, second = commands()[:2]
    assert first == f"{install} . && .venv/bin/hf-latent quickstart"
    assert second == f'{install} ".[test]" && .venv/bin/pytest -n logical'
    assert second in (ROOT / ".ci" / "run").read_text()


def test_ci_runs_what_pre_commit_runs():
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == [".venv/bin/ruff check", ".venv/bin/ruff format --check", ".venv/bin/mypy"]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(hooks) <= set(ci)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "own images", "recipe"])
def test_every_command_runs_in_order(folder, name):
    first, _, *others = commands()
    for command in (first.split(" && ")[-1], *others):
        if command.startswith("pip ") or part(command) != name:
            continue
        if " push " in command:
            push_to_loopback_hub(shorten(command), folder)
        else:
            run(shorten(command), folder)
    assert name == "recipe" or Image.open(folder / "grid.png").size[0] > 0


@pytest.mark.slow
def test_every_block_runs(folder):
    outputs = [run([sys.executable, "-c", block], folder) for block in blocks("python")]
    assert outputs[0].strip() == "(8, 1, 32, 32) (8, 4, 8, 8) 4 times fewer"
    expected = blocks("python")[1].splitlines()[-1].removeprefix("# ")
    assert outputs[1].strip() == expected
    assert "786,432 values in" in expected
    assert Image.open(folder / "sample.png").size == (64, 64)


def test_figures_are_those_of_the_report():
    report = json.loads((ROOT / "docs" / "reports" / "quickstart" / "report.json").read_text())
    for figure in (
        f"{report['total_seconds'] / 60:.1f} minutes",
        f"{report['label_agreement']:.3f}",
        f"guidance {report['guidance_scale']:g}",
        f"{report['classifier_real_test_accuracy']:.3f}",
        f"{report['test_psnr_db']:.1f} dB",
        f"{report['test_unpadded_psnr_db']:.1f} dB",
        f"{report['test_ssim']:.3f}",
        f"{report['peak_memory_mb'] / 1024:.1f} GB",
        f"{report['denoiser_evaluations_per_image']} evaluations",
    ):
        assert figure in PROSE, figure


def test_figures_of_released_autoencoders_are_those_of_their_cards():
    for path in sorted((ROOT / "model_cards").glob("*/metrics.json")):
        metrics = json.loads(path.read_text())
        if "unet_weights_sha256" in metrics:
            continue
        start = f"| [`{path.parent.name}`]"
        (row,) = (line for line in README.splitlines() if line.startswith(start))
        for figure in (
            "x".join(map(str, metrics["latent_shape"])),
            f"{metrics['test_psnr_db']:.1f} dB",
            f"{metrics['test_ssim']:.3f}",
            f"{metrics['weights_mb']:.1f} MB",
        ):
            assert figure in row, figure


def test_figures_of_the_released_model_are_those_of_its_card():
    folder = ROOT / "model_cards" / "fashion-mnist"
    x, training = (json.loads((folder / f"{y}.json").read_text()) for y in ("metrics", "training"))
    weights = (ROOT / "hf_latent/models/pretrained/fashion-mnist").rglob("*.safetensors")
    for figure in (
        f"{training['seconds'] / 60:.0f} minutes",
        f"{sum(path.stat().st_size for path in weights) / 1e6:.1f} MB",
        f"FD {x['fd']:.2f} (real images {x['real_fd']:.2f}",
        f"a perfect denoiser {x['floor_fd']:.2f})",
        f"label agreement {x['label_agreement']:.3f}",
        f"{x['train_on_generated_test_on_real_accuracy']:.3f} of the real test images",
        f"{x['train_on_real_test_on_real_accuracy']:.3f} from as many real ones",
        f"{x['memorisation_latents_copies']} copies",
        f"by features {x['memorisation_features_copies']} (of as many held-out images "
        f"{x['memorisation_features_held_out_copies']})",
    ):
        assert figure in PROSE, figure


def test_the_benchmarks_figure_is_that_of_its_report():
    report = json.loads((ROOT / "docs" / "reports" / "bench" / "autoencoder.json").read_text())
    assert f"at {report['ratio_median']:.2f} of the" in PROSE
    assert report["ratio_median"] >= 0.95


def test_figures_of_the_cache_are_those_of_its_benchmark():
    report = json.loads((ROOT / "docs" / "reports" / "bench" / "cache.json").read_text())
    reading = min(report["reading_ratio_median"], report["reading_large_ratio_median"])
    memory = report["reading_large_anonymous_memory_mb"]
    for figure in (
        f"at {report['reading_ratio_median']:.2f} of the rate",
        f"at {report['reading_large_ratio_median']:.2f} for {report['reading_large_latents']:,}",
        f"a stream at {report['reading_stream_ratio_median']:.2f} and "
        f"{report['reading_large_stream_ratio_median']:.2f}.",
        f"{max(memory) - memory[0]:.0f} MB",
        f"at {report['encoding_small_ratio_median']:.2f} of the encoder's",
        f"at {report['encoding_ratio_median']:.2f} for",
        f"{report['training_ratio_median']:.2f} times as fast",
    ):
        assert figure in PROSE, figure
    assert reading >= 0.8
    assert min(report["encoding_ratio_median"], report["encoding_small_ratio_median"]) >= 0.9
    assert report["reading_large_latents"] >= 1_000_000


def test_figures_of_the_sweep_are_those_of_its_report():
    folder = ROOT / "docs" / "reports" / "sweep" / "fashion-mnist"
    report = json.loads((folder / "report.json").read_text())
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
        assert row(f"{name}{star} |").endswith(f"| {' | '.join(figures)} |")
    assert f"in {report['last_run_minutes']:.0f} minutes" in README
    assert report["last_run_minutes"] <= 25


def row(start: str) -> str:
    """The line of the README's only table row that starts so."""
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {start}"))
    return line


def test_figures_of_the_inspection_are_those_of_its_report():
    folder = ROOT / "docs" / "reports" / "inspect" / "fashion-mnist-f4"
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == "fine"
    yardsticks = {x["name"]: x for x in report["yardsticks"]}
    bands = report["band_kept"]
    expected = {
        "lowest, highest": f"{bands[0]:.1%}, {bands[-1]:.1%}",
        "layout, edges": f"{report['layout_agreement']:.1%}, {report['edge_agreement']:.1%}",
        "added pixel": f"{report['noise_survival']:.1%}",
        f"PSNR at {report['budget_bytes']:.0f}": f"{yardsticks['autoencoder']['psnr_db']:.1f} dB; "
        f"{yardsticks['JPEG']['psnr_db']:.1f} dB",
    }
    for start, figures in expected.items():
        assert row(start).endswith(f"| {figures} |"), start
    assert (folder / "report.md").read_text() == render_report(report)


def test_figures_of_the_evaluation_are_those_of_its_report():
    path = ROOT / "docs" / "reports" / "evaluate" / "quickstart" / "metrics.json"
    x = json.loads(path.read_text())
    assert not x["memorisation_found"]
    expected = {
        "FD (with": f"{x['fd']:.2f} | {x['real_fd']:.2f}",
        "KID": f"{x['kid']:.5f} | {x['real_kid']:.5f}",
        "precision": f"{x['precision']:.3f}, {x['recall']:.3f} | "
        f"{x['real_precision']:.3f}, {x['real_recall']:.3f}",
        "density": f"{x['density']:.3f}, {x['coverage']:.3f} | "
        f"{x['real_density']:.3f}, {x['real_coverage']:.3f}",
        f"label agreement at guidance {x['guidance_scale']:g}": f"{x['label_agreement']:.3f} | "
        f"{x['label_agreement_judge_real_accuracy']:.3f}",
        "accuracy on real": f"{x['train_on_generated_test_on_real_accuracy']:.3f} | "
        f"{x['train_on_real_test_on_real_accuracy']:.3f}",
        "copies": f"{x['memorisation_latents_copies']} | "
        f"{x['memorisation_latents_held_out_copies']} of {x['held_out_images']:,} held-out ones",
    }
    for start, figures in expected.items():
        assert row(start).endswith(f"| {figures} |"), start
    assert f"| {x['num_images']:,} images | generated | real |" in README
    assert f"(with a perfect denoiser: {x['floor_fd']:.2f})" in README


def test_figures_of_the_objectives_are_those_of_their_reports():
    page = (ROOT / "train_scripts" / "recipes" / "fashion_mnist-32" / "README.md").read_text()
    found = {}
    for path in (ROOT / "docs" / "reports" / "objectives").glob("*/metrics.json"):
        x = json.loads(path.read_text())
        training = json.loads(path.with_name("training.json").read_text())
        assert training["unet_weights_sha256"] == x["unet_weights_sha256"]
        assert training["objective"] == path.parent.name
        assert training["torch_threads"] == 1 and "on one thread of a machine" in page
        found[path.parent.name] = x | {"held_out_loss": training["held_out_loss"]}
        figures = (
            f"{training['seconds'] / 60:.1f}",
            f"{training['steps']:,}",
            f"{x['fd']:.2f}",
            f"{x['label_agreement']:.3f}",
        )
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {path.parent.name} |"))
        assert line == f"| {path.parent.name} | {' | '.join(figures)} |"
    assert found.keys() == {"flow", "epsilon", "v_prediction", "sample"}
    assert len({x["comparable_if_equal"] for x in found.values()}) == 1
    assert f"FD of {x['num_images']:,} images" in page
    assert f"{x['real_fd']:.2f}" in page
    best = min(found, key=lambda name: found[name]["fd"])
    assert DenoiserConfig.objective == best
    assert f"`{best}`, the default" in page
    assert "the one with the lowest loss had the worst FD" in PROSE
    assert min(found, key=lambda name: found[name]["held_out_loss"]) == max(
        found, key=lambda name: found[name]["fd"]
    )
    told = ("recall", "train_on_generated_test_on_real_accuracy")
    shares = {name: " and ".join(f"{found[name][x]:.3f}" for x in told) for name in found}
    assert f"({shares['epsilon']}; flow {shares['flow']})" in " ".join(page.split())
    (others,) = {x["denoiser_evaluations_per_image"] for n, x in found.items() if n != "flow"}
    evaluations = found["flow"]["denoiser_evaluations_per_image"]
    assert f"{evaluations} evaluations of the denoiser an image, and {others} for" in page


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
