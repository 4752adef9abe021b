"""The reports and cards of both trainings."""

import json
import shutil

import pytest
import torch
import yaml
from PIL import Image

from hf_latent.command import parse_config
from hf_latent.errors import UserError
from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.finish import reports as model_reports
from hf_latent.training.finish.reports import (
    STORAGE_SETTINGS,
    autoencoder_figures,
    portable_settings,
    save_model,
    warn_of_failure,
)
from hf_latent.training.run.pictures import picture_path, save_grid
from tests.conftest import make_autoencoder
from tests.small import HELD_OUT
from tests.training.conftest import short_autoencoder, short_denoiser


def read(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of an autoencoder and of its denoiser; tests must not change them."""
    folder = tmp_path_factory.mktemp("trained")
    accumulated = {"gradient_accumulation_steps": 2, "max_train_steps": 3}
    train_autoencoder(short_autoencoder(folder, **accumulated))
    train_denoiser(short_denoiser(folder, **accumulated))
    return folder / "autoencoder" / "model", folder / "denoiser" / "model"


def test_both_trainings_leave_a_complete_card(trained):
    place = trained[0].parents[1]
    for folder, picture in zip(trained, ("reconstructions.png", "samples.png"), strict=True):
        card = (folder / "README.md").read_text()
        assert is_unedited(card) and card == render_model_card(folder)
        assert card_pictures(card) == [picture]
        last = Image.open(folder.parent / "samples" / "step-000003.png")
        assert Image.open(folder / picture).tobytes() == last.convert("RGB").tobytes()
        assert "3 steps of 16 images (48 images seen) in " in card
        assert "40 training images of fashion_mnist, padded to 32x32 pixels" in card
        assert f"{HELD_OUT} other images were held out" in card
        for path in folder.rglob("*"):
            if path.suffix in (".json", ".yaml", ".md"):
                assert str(place) not in path.read_text(), path
    assert not list(place.rglob(".model*"))


def test_the_reports_are_about_the_saved_weights(trained):
    autoencoder, denoiser = trained
    vae = load_autoencoder(str(autoencoder))
    assert read(autoencoder)["vae_weights_sha256"] == hash_weights(vae)
    pipeline = LatentDiffusionPipeline.from_pretrained(denoiser)
    assert read(denoiser)["vae_weights_sha256"] == hash_weights(pipeline.vae) == hash_weights(vae)
    assert read(denoiser)["unet_weights_sha256"] == hash_weights(pipeline.unet)


def test_figures_of_the_denoiser(trained):
    autoencoder, denoiser = map(read, trained)
    assert denoiser["steps"] == 3 and denoiser["images_seen"] == 48
    assert denoiser["processes"] == 1 and denoiser["device"] == "cpu"
    assert denoiser["data"] == "fashion_mnist" and denoiser["train_images"] == 40
    assert denoiser["held_out_split_images"] == HELD_OUT and denoiser["held_out_images"] == 12
    assert denoiser["image_shape"] == [1, 32, 32] and denoiser["latent_shape"] == [4, 8, 8]
    assert denoiser["compression_ratio"] == 4 and denoiser["encoded_images"] == 40 + 12
    assert denoiser["held_out_loss"] > 0 and denoiser["seconds"] > 0
    assert denoiser["mixed_precision"] == "no" and denoiser["autoencoder"] is None
    assert denoiser["torch_version"] and denoiser["cpu_cores"]
    for key in ("steps", "seconds", "train_images", "held_out_psnr_db", "held_out_ssim"):
        assert denoiser[f"autoencoder_{key}"] == autoencoder[key], key
    assert "autoencoder_output_dir" not in denoiser and "autoencoder_seed" not in denoiser


def test_the_models_report_is_the_runs_report_without_paths(
    autoencoder_config, denoiser_config, tmp_path
):
    images = tmp_path / "images"
    images.mkdir()
    for level in range(30):
        Image.new("L", (32, 32), 8 * level).save(images / f"{level}.png")
    train_autoencoder(autoencoder_config(data=str(images), max_train_steps=1))
    folder = tmp_path / "autoencoder" / "model"
    run, own = json.loads((folder.parent / "report.json").read_text()), read(folder)
    assert set(run) - set(own) == STORAGE_SETTINGS
    # The run's report has the given path, the model's report only its name.
    assert {key: (run[key], own[key]) for key in own if own[key] != run[key]} == {
        "data": (str(images), "images")
    }
    assert "datasets:" not in (folder / "README.md").read_text()
    # The denoiser's latents are made from the same folder.
    train_denoiser(denoiser_config(data=str(images), conditional=False, max_train_steps=1))
    assert read(tmp_path / "denoiser" / "model")["data"] == "images"


@pytest.mark.parametrize(("place", "config"), [(0, AutoencoderConfig), (1, DenoiserConfig)])
def test_the_settings_can_be_read_again(trained, tmp_path, place, config):
    path = trained[place] / "config.yaml"
    settings = parse_config(config, ["--config", str(path), "--output_dir", str(tmp_path / "x")])
    assert settings.max_train_steps == 3 and settings.train_batch_size == 8
    assert settings.validation_fingerprint == read(trained[place])["validation_fingerprint"]
    with pytest.raises(UserError, match="output_dir"):
        parse_config(config, ["--config", str(path)])


def test_no_path_of_this_machine_is_in_the_settings(tmp_path, denoiser_config, autoencoder_config):
    (tmp_path / "my images").mkdir()
    (tmp_path / "autoencoder" / "model").mkdir(parents=True)
    places = {"data": str(tmp_path / "my images"), "resume_from_checkpoint": str(tmp_path)}
    vae = str(tmp_path / "autoencoder" / "model")
    for config in (
        denoiser_config(
            **places, latents=str(tmp_path), max_train_samples=None, pretrained_unet=vae
        ),
        autoencoder_config(**places, pretrained_vae=vae),
    ):
        settings = portable_settings(config)
        assert settings["data"] == "my images"
        assert str(tmp_path) not in json.dumps(settings)
        assert settings.get("vae", settings.get("pretrained_vae")) == "model"
    assert portable_settings(denoiser_config(data="owner/set"))["data"] == "owner/set"


def test_latents_of_unknown_images_name_no_data(trained, denoiser_config, tmp_path):
    latents = shutil.copytree(trained[1].parent / "latents", tmp_path / "latents")
    manifest = json.loads((latents / "manifest.json").read_text())
    assert manifest["data"] == "fashion_mnist"
    for data, name in (("owner/set", "owner/set"), (None, None)):
        (latents / "manifest.json").write_text(json.dumps(manifest | {"data": data}))
        config = denoiser_config(
            vae=str(trained[0]),
            latents=str(latents),
            max_train_samples=None,
            output_dir=str(tmp_path / f"{name}"),
        )
        train_denoiser(config)
        folder = tmp_path / f"{name}" / "model"
        assert read(folder)["data"] == name and read(folder)["train_images"] == 40
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        assert settings.get("data", "left out") == (name or "left out")
        assert (
            "fashion_mnist" not in (folder / "README.md").read_text().split("the autoencoder's")[0]
        )


def test_autoencoder_figures_are_repeated_if_the_weights_match(trained, tmp_path):
    autoencoder, denoiser = trained
    sha256 = read(autoencoder)["vae_weights_sha256"]
    figures = autoencoder_figures(str(autoencoder), sha256)
    assert figures["autoencoder_held_out_psnr_db"] == read(autoencoder)["held_out_psnr_db"]
    # A pipeline's report has the figures already.
    assert autoencoder_figures(str(denoiser), sha256) == figures
    assert autoencoder_figures(str(autoencoder), "0" * 64) == {}
    assert autoencoder_figures("fashion-mnist-f4", "0" * 64) == {}
    assert autoencoder_figures("nowhere", sha256) == {}
    autoencoder = shutil.copytree(autoencoder, tmp_path / "model")
    for text in ("{", "[]", "[" * 100_000):
        (autoencoder / "training.json").write_text(text)
        assert autoencoder_figures(str(autoencoder), sha256) == {}


def test_the_report_names_the_pretrained_autoencoder(autoencoder_config, denoiser_config, tmp_path):
    first, second = tmp_path / "first" / "model", tmp_path / "autoencoder" / "model"
    make_autoencoder(sample_size=32).save_pretrained(first)
    train_autoencoder(
        autoencoder_config(pretrained_vae=str(first), train_decoder_only=True, max_train_steps=1)
    )
    assert read(second)["pretrained_vae"] == "model"
    train_denoiser(denoiser_config(max_train_steps=1))
    figures = read(tmp_path / "denoiser" / "model")
    assert figures["autoencoder_pretrained_vae"] == "model"
    assert figures["autoencoder_images_seen"] == 8
    assert str(tmp_path) not in json.dumps(figures)


def test_a_finished_run_that_is_resumed_invents_no_figures(
    autoencoder_config, denoiser_config, tmp_path
):
    runs = (
        (train_autoencoder, autoencoder_config, tmp_path / "autoencoder"),
        (train_denoiser, denoiser_config, tmp_path / "denoiser"),
    )
    for train, config, run in runs:
        settings = {"max_train_steps": 1, "checkpointing_steps": 1}
        train(config(**settings))
        before = read(run / "model")
        train(config(**settings, resume_from_checkpoint="latest"))
        after = read(run / "model")
        lost = {"images_per_second"}
        if train is train_denoiser:
            lost |= {"encode_seconds", "encoded_images"}
        assert before.keys() - after.keys() == lost and not after.keys() - before.keys()
        assert after["steps"] == before["steps"] and after["images_seen"] == 8
        assert after["seconds"] == pytest.approx(before["seconds"], abs=1)
        assert after["held_out_loss"] == pytest.approx(before["held_out_loss"], rel=1e-5)
        card = (run / "model" / "README.md").read_text()
        assert "1 step of 8 images (8 images seen) in " in card
        assert "images per second" not in card.split("the autoencoder's training")[0]
        assert "encoding the images" not in card
    report = json.loads((tmp_path / "autoencoder" / "report.json").read_text())
    assert report["images_seen"] == 8 and "images_per_second" not in report


def test_a_failed_card_does_not_end_the_training(
    autoencoder_config, denoiser_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(model_reports, "write_model_card", None)
    train_autoencoder(autoencoder_config(max_train_steps=1))
    train_denoiser(denoiser_config(max_train_steps=1))
    assert json.loads((tmp_path / "autoencoder" / "report.json").read_text())["steps"] == 1
    lines = capsys.readouterr().err.splitlines()
    for folder in (tmp_path / "autoencoder" / "model", tmp_path / "denoiser" / "model"):
        assert read(folder)["steps"] == 1 and (folder / "config.yaml").is_file()
        start = f"warning: the model is saved in {folder}; its card could not be made (TypeError: "
        assert sum(line.startswith(start) for line in lines) == 1


def test_a_failed_picture_does_not_stop_the_card(autoencoder_config, tmp_path, capsys):
    folder, picture = tmp_path / "model", picture_path(tmp_path, 1)
    picture.parent.mkdir()
    picture.write_bytes(b"no picture")
    settings = portable_settings(autoencoder_config(data="fashion_mnist"))
    save_model(make_autoencoder(), tmp_path, settings, {"steps": 1}, "samples.png")
    assert read(folder)["steps"] == 1
    assert is_unedited((folder / "README.md").read_text())
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "diffusion_pytorch_model.safetensors"),
        *("training.json", "config.yaml", "README.md"),
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: the model is saved in {folder}; its picture could not be made ("
    )
    # The line can be printed even if the folder name is not UTF-8.
    with warn_of_failure(f"{tmp_path}/na\udcffme; its card"):
        raise UserError("no model")
    assert f"{tmp_path}/na?me; its card could not be made (UserError: " in capsys.readouterr().err


def test_data_whose_name_is_not_utf8_is_accepted(autoencoder_config, tmp_path, capsys):
    vae = make_autoencoder()
    figures = {"steps": 1, "train_images": 2, "image_shape": [1, 32, 32], "data": "im\udcffages"}
    figures["vae_weights_sha256"] = hash_weights(vae)
    settings = portable_settings(autoencoder_config())
    picture_path(tmp_path, 1).parent.mkdir()
    save_grid(torch.zeros(1, 1, 8, 8), picture_path(tmp_path, 1))
    save_model(vae, tmp_path, settings, figures, "samples.png")
    assert capsys.readouterr().err == ""
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "2 training images of im?ages" in card and is_unedited(card)


def test_an_autoencoder_without_a_report_is_accepted(denoiser_config, tmp_path):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    train_denoiser(denoiser_config(max_train_steps=1))
    card = (tmp_path / "denoiser" / "model" / "README.md").read_text()
    assert "the autoencoder's training" not in card and "what its autoencoder loses" in card
