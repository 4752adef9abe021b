import json
import time
from contextlib import contextmanager

import pytest
from datasets import DatasetDict
from PIL import Image

from hf_latent.cli import main
from hf_latent.data.images import sources
from hf_latent.evaluation.pictures import GAP, LABEL_WIDTH
from hf_latent.experiments import quickstart
from hf_latent.experiments.quickstart import QuickstartConfig, run_quickstart
from hf_latent.experiments.time_budget import TimeBudget
from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import ticking_clock
from tests.small import HELD_OUT, few_held_out, small_trainings

MAX_MINUTES = 2
TICK_SECONDS = 1.2
STAGES = ("setup", "classifier", "reserve", "encode", "denoiser", "evaluation")
CPU_SECONDS: dict[str, float] = {}


@pytest.fixture(autouse=True, scope="module")
def small():
    """Narrow models, and no more built-in images than a test trains on: each one is checked."""
    whole = few_held_out()
    images = DatasetDict(whole, train=whole["train"].select(range(600)))
    with small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", lambda: images)
        patch.setitem(quickstart.AUTOENCODER, "fold_samples", 100)
        # The clock is also read where the finish takes hardly any time.
        patch.setattr(quickstart, "FINISH_SECONDS", 12 * TICK_SECONDS)
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """Return folder, report and seconds by the given clock of a short quickstart."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    now = ticking_clock(TICK_SECONDS)
    settings = QuickstartConfig(
        output_dir=str(folder),
        max_minutes=MAX_MINUTES,
        max_train_samples=600,
        evaluation_images=90,
        num_inference_steps=3,
    )
    start, cpu_start = now(), time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        CPU_SECONDS.clear()
        patch.setattr(TimeBudget, "stage", timed(TimeBudget.stage))
        report = run_quickstart(settings, now=now)
        CPU_SECONDS["whole"] = time.process_time() - cpu_start
    return folder, report, now() - start


def timed(stage):
    """Measure the CPU time of stages too."""

    @contextmanager
    def of_both(self, name):
        start = time.process_time()
        with stage(self, name):
            yield
        CPU_SECONDS[name] = time.process_time() - start

    return of_both


@pytest.mark.slow
def test_quickstart_saves_a_model_pictures_and_a_report(finished):
    folder, report, _ = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "denoiser",
        "model",
        "reconstructions.png",
        "report.json",
        "samples.png",
    ]
    assert Image.open(folder / "samples.png").size == (LABEL_WIDTH + 8 * 64, 10 * 64)
    assert Image.open(folder / "reconstructions.png").size == (16 * 64 + 7 * GAP, 5 * 64)
    written = json.loads((folder / "report.json").read_text())
    assert written == json.loads(json.dumps(report))


@pytest.mark.slow
def test_quickstart_keeps_within_its_time(finished):
    _, report, seconds = finished
    assert MAX_MINUTES * 60 * 0.5 < seconds < MAX_MINUTES * 60
    assert seconds * 0.95 < report["total_seconds"] <= seconds
    # The given clock moves at every reading, also between stages. Stages take all CPU time, except
    # for the report and the card.
    assert sum(report[f"{name}_seconds"] for name in STAGES) == pytest.approx(seconds, rel=0.2)
    outside = CPU_SECONDS["whole"] - sum(CPU_SECONDS[name] for name in STAGES)
    assert outside < 0.5  # 0.14 seconds if the stages take 7


@pytest.mark.slow
def test_the_report_has_plausible_figures(finished):
    folder, report, _ = finished
    assert report["image_shape"] == (1, 32, 32)
    assert report["latent_shape"] == (4, 8, 8)
    assert report["compression_ratio"] == 4
    assert report["test_images"] == HELD_OUT
    encoded = report["encode_images_per_second"] * report["encode_seconds"]
    assert encoded == pytest.approx(report["train_images"] + HELD_OUT)
    assert report["label_agreement_images"] == 90
    assert report["denoiser_evaluations_per_image"] == 6
    assert 0 < report["test_ssim"] < 1
    assert 0.05 < report["label_agreement"] <= 1
    assert 0.5 < report["classifier_real_test_accuracy"] < 1
    assert report["autoencoder"] == "fashion-mnist-f4"
    assert report["test_psnr_db"] > 29
    check_training(report, "denoiser")
    pipeline = LatentDiffusionPipeline.from_pretrained(folder / "model")
    assert report["vae_hash_before"] == report["vae_hash_after"] == hash_weights(pipeline.vae)
    assert hash_weights(pipeline.vae) == hash_weights(load_autoencoder("fashion-mnist-f4"))


def check_training(report, part):
    assert report[f"{part}_steps"] > 5
    assert report[f"{part}_images_per_second"] > 10
    assert report[f"{part}_held_out_loss"] > 0


@pytest.mark.slow
def test_train_vae_trains_the_autoencoder_too(tmp_path):
    folder = tmp_path / "run"
    report = run_quickstart(
        QuickstartConfig(
            output_dir=str(folder),
            train_vae=True,
            max_minutes=2 * MAX_MINUTES,
            max_train_samples=300,
            evaluation_images=20,
            num_inference_steps=2,
        ),
        now=ticking_clock(TICK_SECONDS),
    )
    assert report["autoencoder"] == "trained here"
    assert (folder / "autoencoder" / "model").is_dir()
    assert 5 < report["test_psnr_db"] < 40
    assert report["autoencoder_kl_nats_per_latent_value"] > 0
    check_training(report, "autoencoder")
    check_training(report, "denoiser")
    pipeline = LatentDiffusionPipeline.from_pretrained(folder / "model")
    assert hash_weights(pipeline.vae) != hash_weights(load_autoencoder("fashion-mnist-f4"))


@pytest.mark.slow
def test_the_models_card_has_the_figures(finished):
    folder, report, _ = finished
    card = (folder / "model" / "README.md").read_text()
    assert card == render_model_card(folder / "model")
    assert f"| label agreement | {report['label_agreement']:.3f} | " in card
    assert f"| {report['classifier_real_test_accuracy']:.3f} (of {HELD_OUT}) |" in card
    assert f"| PSNR | {report['test_psnr_db']:.2f} dB |" in card
    assert "| 90 images | generated | real |" in card and "fashion-mnist-f4" in card
    assert "whether it copies training images" in card and "## Does it copy" not in card
    assert card_pictures(card) == ["samples.png", "reconstructions.png"]
    metrics = json.loads((folder / "model" / "metrics.json").read_text())
    for key in ("train_images", "validation_fingerprint", "guidance_scale", "label_agreement"):
        assert metrics[key] == report[key]
    shown, own = (Image.open(x / "samples.png") for x in (folder / "model", folder))
    assert shown.tobytes() == own.tobytes()


@pytest.mark.slow
def test_generate_draws_from_the_saved_model(finished, tmp_path):
    folder, _, _ = finished
    output = tmp_path / "grid.png"
    flags = (
        f"--model {folder}/model --class_labels 0,1,2 --num_images 24 --output {output} --seed 7"
    )
    main(["generate", *flags.split(), "--num_inference_steps", "2"])
    assert Image.open(output).size == (LABEL_WIDTH + 8 * 64, 3 * 64)


@pytest.mark.slow
def test_a_machine_that_slows_measures_less_and_keeps_the_minutes(small, tmp_path, capsys):
    seconds = [0.0]

    def now() -> float:
        seconds[0] += TICK_SECONDS
        return seconds[0]

    class Slowing(TimeBudget):
        def fitting(self, parts):
            for part in super().fitting(parts):
                yield part
                self.slow()

        def slow(self) -> None:
            seconds[0] += 4.0  # each batch takes 4 seconds more than estimated

    settings = QuickstartConfig(
        output_dir=str(tmp_path / "run"),
        max_minutes=MAX_MINUTES,
        max_train_samples=300,
        evaluation_images=1000,
        num_inference_steps=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "TimeBudget", Slowing)
        report = run_quickstart(settings, now=now)
    assert 100 <= report["label_agreement_images"] < 1000
    assert report["total_seconds"] < 60 * MAX_MINUTES
    assert "the machine has slowed: label_agreement_images is " in capsys.readouterr().err
