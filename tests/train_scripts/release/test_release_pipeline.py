import json

import pytest
import yaml

import release_pipeline as release_pipeline_module
from hf_latent.errors import UserError
from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.card.weights import read_saved_weights
from hf_latent.hub.contents import whole_model
from hf_latent.hub.model_files import CODE
from hf_latent.models import load
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline import LatentDiffusionPipeline
from release_pipeline import ReleasePipelineConfig, release_pipeline
from tests.hub.saved_models import measured, write_reports

ABOUT = {
    "name": "clothes",
    "license": "mit",
    "summary": "Draws clothes.",
    "data_name": "Fashion-MNIST",
    "data_text": "Ten kinds of clothes.",
    "limits_text": "It knows no shoes for dogs.",
}
PICTURES = ("samples.png", "reconstructions.png", "closest_by_latents.png")
ABOUT_MODEL = ("metrics.json", "training.json", "config.yaml", "model_index.json")
ABOUT_MODEL += ("vae", "unet", "scheduler")


@pytest.fixture
def config(pipeline, tmp_path) -> ReleasePipelineConfig:
    pipeline.save_pretrained(tmp_path / "model")
    write_reports(tmp_path / "model", pipeline, pictures=PICTURES)
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(ABOUT))
    return ReleasePipelineConfig(
        model=str(tmp_path / "model"),
        about=str(tmp_path / "about.yaml"),
        pretrained_dir=str(tmp_path / "pretrained"),
        cards_dir=str(tmp_path / "cards"),
    )


def test_a_release_has_a_model_and_a_card_made_of_its_reports(config, pipeline, tmp_path):
    metrics = release_pipeline(config)
    model, cards = tmp_path / "pretrained" / "clothes", tmp_path / "cards" / "clothes"
    assert json.loads((model / "metrics.json").read_text()) == metrics
    source = {"load_from": "hf_latent/models/pretrained/clothes"}
    assert metrics == measured(pipeline) | ABOUT | source
    saved = LatentDiffusionPipeline.from_pretrained(model)
    for part in ("vae", "unet"):
        assert hash_weights(getattr(saved, part)) == hash_weights(getattr(pipeline, part))
    for folder, names in ((model, (*ABOUT_MODEL, *PICTURES)), (cards, ("README.md", *PICTURES))):
        assert {path.name for path in folder.iterdir()} == set(names)
    card = (cards / "README.md").read_text()
    assert is_unedited(card)
    assert card == render_model_card(model)
    assert card_pictures(card) == list(PICTURES)
    for text in (
        "# clothes\n\nDraws clothes.\n",
        "license: mit",
        'LatentDiffusionPipeline.from_pretrained("hf_latent/models/pretrained/clothes")',
        "## Data\n\nTen kinds of clothes.\n\n60,000 training images of Fashion-MNIST, padded",
        "## Limits\n\nIt knows no shoes for dogs.\n",
        "18,000 steps of 192 images",
        "| FD | 6.17 | 1.04 | 0.22 |",
        "- name: clothes\n",
        "name: Fashion-MNIST\n",
    ):
        assert text in card, text
    assert str(tmp_path) not in card
    # The package has the code: diffusers alone cannot load it from here.
    assert not list(model.glob("*.py")) and "With diffusers alone" not in card
    index = json.loads((model / "model_index.json").read_text())
    assert index["_class_name"] == "LatentDiffusionPipeline"


def test_a_release_keeps_the_dtype_of_the_weights(config, pipeline, tmp_path):
    pipeline.unet.half()
    pipeline.save_pretrained(tmp_path / "model")
    pipeline.unet.float()
    write_reports(tmp_path / "model", pipeline)
    release_pipeline(config)
    for part in ("vae", "unet"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        saved = tmp_path / "pretrained" / "clothes" / name
        assert saved.read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_a_released_autoencoder_is_not_copied(config, pipeline, tmp_path, monkeypatch):
    pretrained = tmp_path / "pretrained"
    pipeline.vae.save_pretrained(pretrained / "clothes-f2")
    for module in (load, release_pipeline_module):
        monkeypatch.setattr(module, "PRETRAINED", pretrained)
    release_pipeline(config)
    model = pretrained / "clothes"
    assert not list(model.glob("vae/*.safetensors")) and list(model.glob("unet/*.safetensors"))
    saved = LatentDiffusionPipeline.from_pretrained("clothes")
    assert hash_weights(saved.vae) == hash_weights(pipeline.vae)
    with pytest.raises(ValueError, match="clothes is small: leave out device_map"):
        LatentDiffusionPipeline.from_pretrained("clothes", device_map="balanced")
    assert hash_weights(load_autoencoder("clothes")) == hash_weights(pipeline.vae)
    card = (tmp_path / "cards" / "clothes" / "README.md").read_text()
    assert read_saved_weights(pretrained / "clothes-f2").sha256 in card
    with whole_model("clothes") as whole:  # what a push sends
        names = {path.name for path in whole.iterdir()}
        assert names == {*ABOUT_MODEL, *PICTURES, *CODE}
        monkeypatch.undo()  # it needs no other model
        saved = LatentDiffusionPipeline.from_pretrained(whole)
        assert hash_weights(saved.vae) == hash_weights(pipeline.vae)


@pytest.mark.parametrize("place", ["elsewhere", "other settings"])
def test_another_autoencoder_is_copied(config, pipeline, tmp_path, monkeypatch, place):
    pretrained = tmp_path / ("pretrained" if place == "other settings" else "package")
    pipeline.vae.save_pretrained(pretrained / "clothes-f2")
    for module in (load, release_pipeline_module):
        monkeypatch.setattr(module, "PRETRAINED", pretrained)
    if place == "other settings":
        path = pretrained / "clothes-f2" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.3}))
    release_pipeline(config)
    model = tmp_path / "pretrained" / "clothes"
    saved = LatentDiffusionPipeline.from_pretrained(model)
    assert list(model.glob("vae/*.safetensors")) and saved.vae.config.scaling_factor == 1


@pytest.mark.parametrize("report", ["training", "metrics"])
def test_a_model_without_reports_of_its_weights_is_not_released(config, pipeline, tmp_path, report):
    for wrong in ({"unet_weights_sha256": "0" * 64}, None):
        (tmp_path / "model" / f"{report}.json").unlink()
        write_reports(tmp_path / "model", pipeline, **{report: wrong})
        with pytest.raises(UserError, match=r"lacks the training\.json or the metrics\.json"):
            release_pipeline(config)
    assert not (tmp_path / "pretrained").exists() and not (tmp_path / "cards").exists()


def test_a_second_release_has_the_new_licence(config, tmp_path):
    release_pipeline(config)
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(ABOUT | {"license": "apache-2.0"}))
    release_pipeline(config)
    card = (tmp_path / "cards" / "clothes" / "README.md").read_text()
    assert "license: apache-2.0\n" in card
