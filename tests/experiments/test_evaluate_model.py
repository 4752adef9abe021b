import json
from dataclasses import replace

import pytest
from PIL import Image

from hf_latent.cli import main
from hf_latent.experiments.evaluate_model import (
    PICTURES,
    EvaluateConfig,
    evaluate_model,
    update_card,
)
from hf_latent.hub.card.render import card_pictures, write_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import NARROW_DENOISER, make_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors
from tests.hub.saved_models import measured, write_reports

FILES = {"README.md", "metrics.json", "samples.png", "reconstructions.png"}
FILES |= {"closest_by_latents.png"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("hf_latent.evaluation.images.reference.LARGEST_DEFAULT", 20)
    monkeypatch.setattr(
        "hf_latent.evaluation.evaluate.load_feature_extractor", lambda name: ShortVectors()
    )


@pytest.fixture
def config(tmp_path) -> EvaluateConfig:
    vae = make_autoencoder()
    unet = create_denoiser("tiny", vae, (1, 32, 32), None, **NARROW_DENOISER)
    pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"))
    pipeline.save_pretrained(tmp_path / "model")
    write_model_card(tmp_path / "model", "ada/clothes", "mit")
    return EvaluateConfig(
        model=str(tmp_path / "model"),
        output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"),
        resize_mode="pad",
        max_train_samples=60,
        num_images=20,
        num_inference_steps=1,
    )


def test_figures_with_another_guide_are_not_written_into_the_model(config, tmp_path):
    folder = tmp_path / "model"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    metrics = evaluate_model(replace(config, guide=str(folder), guidance_scale=1.5))
    assert metrics["guide"] == "model"
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


def test_a_folder_with_a_released_models_name_is_not_confused_with_it(
    config, tmp_path, monkeypatch
):
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "model").rename(tmp_path / "pretrained" / "clothes")
    monkeypatch.setattr("hf_latent.models.load.PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    before = sorted((tmp_path / "pretrained").rglob("*"))
    evaluate_model(replace(config, model="clothes", output_dir="clothes"))
    assert (tmp_path / "clothes" / "metrics.json").is_file()
    assert not (tmp_path / "clothes" / "README.md").exists()
    assert sorted((tmp_path / "pretrained").rglob("*")) == before


def test_the_card_gets_the_figures(config, tmp_path, capsys):
    before = (tmp_path / "model" / "README.md").read_text()
    assert "model-index" not in before and "Not measured" in before
    metrics = evaluate_model(replace(config, model=str(tmp_path)))  # the run's folder
    folder = tmp_path / "model"
    assert {path.name for path in folder.iterdir()} >= FILES
    for name in ("metrics.json", *PICTURES):
        if name.endswith(".json"):
            written = json.loads((folder / name).read_text())
            assert written == json.loads((tmp_path / "out" / name).read_text())
        else:
            ours, measured = (Image.open(x / name) for x in (folder, tmp_path / "out"))
            assert ours.tobytes() == measured.tobytes()
    card = (folder / "README.md").read_text()
    assert is_unedited(card)
    assert f"| {metrics['fd']:.2f} | {metrics['real_fd']:.2f} |" in card
    assert "efficientnet-lite0 features" in card
    assert card_pictures(card) == list(PICTURES)
    assert "Not measured" not in card
    assert '"ada/clothes"' in card and "license: mit" in card
    assert str(tmp_path) not in card + (folder / "metrics.json").read_text()
    assert f"the figures are on the card, {folder}/README.md" in capsys.readouterr().out


def test_an_edited_card_is_kept_with_a_message(config, tmp_path, capsys):
    edited = (tmp_path / "model" / "README.md").read_text() + "mine\n"
    (tmp_path / "model" / "README.md").write_text(edited)
    metrics = evaluate_model(config)
    assert (tmp_path / "model" / "README.md").read_text() == edited
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["fd"] == metrics["fd"]
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "README.md" in x)
    assert "was edited by hand and is kept" in line


def test_update_card_false_leaves_the_models_folder_unchanged(config, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    evaluate_model(replace(config, update_card=False))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before


def test_a_card_never_has_another_models_figures(config, tmp_path):
    evaluate_model(config)
    other = LatentDiffusionPipeline.from_pretrained(tmp_path / "model")
    other.unet.conv_out.bias.data += 1
    other.save_pretrained(tmp_path / "model")
    write_model_card(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "## Figures" not in card and "model-index" not in card and card_pictures(card) == []


def show(folder, width, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (width, 10)).save(folder / name)


def widths(folder):
    return {path.name: Image.open(path).width for path in folder.glob("*.png")}


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    show(tmp_path / "saved", 20, *PICTURES, "mine.png")
    (tmp_path / "none").mkdir()
    return tmp_path / "saved"


def test_pictures_of_an_earlier_evaluation_are_removed(pipeline, saved, tmp_path):
    write_reports(saved, pipeline)
    show(tmp_path / "now", 30, "samples.png")
    update_card(saved, measured(pipeline), tmp_path / "now")
    assert widths(saved) == {"samples.png": 30, "mine.png": 20}
    assert card_pictures((saved / "README.md").read_text()) == ["samples.png"]


@pytest.mark.parametrize(
    ("training", "kept"), [((), True), (None, False), ({"unet_weights_sha256": "0"}, False)]
)
@pytest.mark.parametrize("earlier", [None, {"unet_weights_sha256": "0"}])
def test_pictures_of_the_training_stay_if_there_are_no_newer_ones(
    pipeline, saved, tmp_path, training, kept, earlier
):
    write_reports(saved, pipeline, training, earlier)
    update_card(saved, measured(pipeline), tmp_path / "none")
    of_training = {"samples.png": 20, "reconstructions.png": 20} if kept else {}
    assert widths(saved) == of_training | {"mine.png": 20}


def test_a_damaged_report_of_an_earlier_evaluation_is_replaced(pipeline, saved, tmp_path):
    for text in ("{", "[1]"):
        (saved / "metrics.json").write_text(text)
        update_card(saved, measured(pipeline), tmp_path / "none")
        assert json.loads((saved / "metrics.json").read_text()) == measured(pipeline)


def test_the_command_evaluates_a_model(config, tmp_path):
    flags = {"model": config.model, "output_dir": config.output_dir, "cache_dir": config.cache_dir}
    flags |= {"resize_mode": "pad", "max_train_samples": 60, "num_images": 20}
    flags |= {"num_inference_steps": 1, "update_card": "false"}
    main(["evaluate", *(f"--{name}={value}" for name, value in flags.items())])
    assert not (tmp_path / "model" / "metrics.json").exists()
    assert (tmp_path / "out" / "metrics.json").is_file()
