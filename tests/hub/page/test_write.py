"""What `hf-latent export --format page` writes, and what it refuses."""

import base64
import hashlib
import json

import pytest
import yaml

from hf_latent.errors import UserError
from hf_latent.hub import export
from hf_latent.hub.page.write import (
    BROWSER_FILES,
    RUNTIME_ADDRESS,
    RUNTIME_FILES,
    check_pageable,
    describe_model,
    describe_runtime,
)
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import make_autoencoder, make_denoiser, make_guide
from tests.hub.page.conftest import CLASSES, TITLE
from tests.hub.test_export import run


def test_a_page_is_static_files_that_name_no_path(page):
    names = {x.relative_to(page).as_posix() for x in page.rglob("*") if x.is_file()}
    graphs = {f"{step}.onnx" for step in ("encode", "denoise", "decode")}
    runtime = {f"runtime/{name}" for name in RUNTIME_FILES}
    assert names == {*BROWSER_FILES, "page.json", "README.md"} | graphs | runtime
    for path in page.rglob("*"):
        assert path.is_dir() or str(page.parent).encode() not in path.read_bytes()


def test_the_page_knows_its_model(page, model):
    settings = json.loads((page / "page.json").read_text())
    assert settings["title"] == TITLE
    assert settings["classes"] == list(CLASSES.values())
    assert settings["image_shape"] == [3, 16, 16]
    assert settings["latent_shape"] == [4, 4, 4]
    assert settings["guidance_scale"] == 3
    assert str(settings["default_steps"]) in settings["steps"]


@pytest.mark.parametrize(("own", "scale"), [(None, 2), ({"guidance_scale": 0.0}, 0)])
def test_guidance_is_the_models_own(own, scale):
    vae = make_autoencoder()
    model = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("flow"), guidance=own)
    settings = describe_model(model, "A")
    assert settings["guidance_scale"] == scale
    assert settings["classes"] == ["class 0", "class 1", "class 2"]


def test_a_distilled_model_has_one_number_of_steps_and_no_guidance(distilled):
    settings = describe_model(distilled, "A")
    assert (settings["distilled"], settings["guidance_scale"]) == (True, 1)
    assert (settings["default_steps"], list(settings["steps"])) == (4, ["4"])
    assert settings["steps"]["4"]["guided"] == [False] * 4


def test_the_models_own_number_of_steps_is_offered_first(pipeline):
    assert describe_model(pipeline, "A")["default_steps"] == 8
    pipeline.register_to_config(num_inference_steps=5)
    settings = describe_model(pipeline, "A")
    assert (settings["distilled"], settings["default_steps"]) == (False, 5)
    assert list(settings["steps"]) == ["4", "5", "6", "8", "10", "20"]


@pytest.mark.parametrize(("folder", "name"), [("pets/model", "pets"), ("cats", "cats")])
def test_a_page_is_named_after_the_run_or_the_folder(tmp_path, folder, name):
    (tmp_path / folder).mkdir(parents=True)
    assert export.name_model(str(tmp_path / folder)) == name
    assert export.name_model("user/model") == "user/model"


def test_a_static_space_knows_the_title(page):
    _, header, _ = (page / "README.md").read_text().split("---\n")
    assert yaml.safe_load(header) == {"title": TITLE, "sdk": "static"}


def test_a_given_runtime_is_copied_with_its_hash(page, runtime):
    described = json.loads((page / "page.json").read_text())["runtime"]
    for name, file in zip(RUNTIME_FILES, described, strict=True):
        assert file["address"] == f"runtime/{name}"
        content = (page / file["address"]).read_bytes()
        assert content == (runtime / name).read_bytes()
        digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
        assert file["integrity"] == f"sha384-{digest}"


def test_without_a_runtime_the_page_loads_a_public_one(tmp_path):
    described = describe_runtime(None, tmp_path)
    assert [x["address"] for x in described] == [f"{RUNTIME_ADDRESS}/{n}" for n in RUNTIME_FILES]
    assert [x["integrity"] for x in described] == list(RUNTIME_FILES.values())
    assert not list(tmp_path.iterdir())


def test_a_runtime_without_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="onnxruntime-web"):
        describe_runtime(tmp_path, tmp_path)


def test_what_a_page_cannot_show_is_refused():
    vae = make_autoencoder(6)
    model = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("flow"))
    with pytest.raises(UserError, match="6 channels"):
        check_pageable(model)
    vae = make_autoencoder(1)
    unet, guide = make_denoiser(vae), make_guide(vae)
    model = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"), guide_unet=guide)
    with pytest.raises(UserError, match="has no autoguidance: distil the model first"):
        check_pageable(model)


@pytest.mark.parametrize("flags", ["--format dit --runtime dist", "--title A"])
def test_settings_of_a_page_are_refused_for_other_formats(page, tmp_path, flags, capsys):
    model, out = page.parent / "model", tmp_path / "out"
    flags = f"--model {model} --output_dir {out} {flags}"
    assert run(*flags.split()) == 2
    assert "is for --format page: leave it out" in capsys.readouterr().err
    assert not out.exists()


def test_without_its_packages_the_extra_is_named(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    model, out = page.parent / "model", tmp_path / "out"
    assert run("--model", model, "--output_dir", out, "--format", "page") == 2
    assert "pip install 'hf-latent[page]'" in capsys.readouterr().err
    assert not out.exists()
