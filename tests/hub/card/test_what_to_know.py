"""What every model's card says to those who want to use the model: licence, versions, citation."""

import re
import tomllib

import pytest
import yaml

from hf_latent.hub.card.render import render_model_card
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.hub_format import MINIMUM_DIFFUSERS, SHORT_CARD
from tests.conftest import make_denoiser
from tests.hub.saved_models import ROOT, section

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.fixture(params=["pipeline", "vae"])
def folder(request, pipeline, tmp_path):
    (pipeline if request.param == "pipeline" else pipeline.vae).save_pretrained(tmp_path)
    return tmp_path


def cited(card: str) -> list[str]:
    return re.findall(r"^@\w+\{(\w+),$", section(card, "Citation"), re.MULTILINE)


def test_a_missing_licence_is_said_and_a_given_one_is_not(folder):
    hint = "- It names no licence: ask its owner before you use it."
    assert hint in section(render_model_card(folder, "ada/model"), "Limits")
    card = render_model_card(folder, "ada/model", "mit")
    assert "license: mit\n" in card and hint not in card
    assert hint in SHORT_CARD


def test_the_oldest_diffusers_is_that_of_the_package(folder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"diffusers>={MINIMUM_DIFFUSERS}" in project["dependencies"]
    assert f"diffusers alone, {MINIMUM_DIFFUSERS} or newer" in " ".join(
        render_model_card(folder).split()
    )


def test_the_hubs_own_snippet_and_the_code_that_travels_are_explained(folder):
    card = " ".join(render_model_card(folder).split())
    assert "The Hub's own snippet fails: it" in card
    if (folder / "pipeline.py").exists():
        assert "Nothing else has to be installed: the code comes with the model." in card


def test_commands_run_without_a_path_to_scripts(folder):
    assert not re.search(r"`hf-latent|train_scripts", render_model_card(folder))


def test_the_package_is_cited_as_in_its_own_file(folder):
    card = section(render_model_card(folder), "Citation").replace("\\_", "_")
    assert f"  title = {{{CITATION['title']}}},\n" in card
    assert f"  author = {{{{{CITATION['authors'][0]['name']}}}}}\n" in card
    (reference,) = CITATION["references"]
    assert f"  title = {{{reference['title']}}},\n" in card
    names = [f"{x['family-names']}, {x['given-names']}" for x in reference["authors"]]
    assert " and ".join(names).replace("ö", '{\\"o}') in card


@pytest.mark.parametrize(
    ("objective", "classes", "settings", "method"),
    [
        ("flow", None, {}, ["liu2023flow"]),
        ("epsilon", None, {}, ["ho2020ddpm"]),
        ("sample", None, {}, ["ho2020ddpm"]),
        ("v_prediction", None, {}, ["salimans2022progressive"]),
        ("flow", 3, {}, ["liu2023flow", "ho2022guidance"]),
        ("flow", 3, {"guide": True}, ["liu2023flow", "karras2024autoguidance"]),
        (
            "flow",
            3,
            {"guidance": {"guidance_interval": [0.0, 0.8]}},
            ["liu2023flow", "ho2022guidance", "kynkaanniemi2024interval"],
        ),
    ],
)
def test_the_methods_of_a_model_are_cited(vae, tmp_path, objective, classes, settings, method):
    parts = vae, make_denoiser(vae, classes), create_scheduler(objective)
    guide = make_denoiser(vae, classes) if settings.pop("guide", False) else None
    LatentDiffusionPipeline(*parts, guide_unet=guide, **settings).save_pretrained(tmp_path)
    assert cited(render_model_card(tmp_path)) == ["hf_latent", "rombach2022ldm", *method]


def test_an_autoencoder_cites_the_package_and_latent_diffusion(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    assert cited(render_model_card(tmp_path)) == ["hf_latent", "rombach2022ldm"]
