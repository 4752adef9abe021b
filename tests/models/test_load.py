import json
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from hf_latent.errors import UserError
from hf_latent.models import load
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import (
    PRETRAINED,
    find_model,
    is_own,
    load_autoencoder,
    load_denoiser,
    loading,
)
from hf_latent.models.presets import create_scheduler
from hf_latent.output import read_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import get_objective, same_noise_levels
from tests.pipeline.test_prompts import make_words


def test_an_autoencoder_alone_and_in_a_pipeline(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    pipeline.vae.save_pretrained(tmp_path / "vae")
    for name in ("pipeline", "vae"):
        assert hash_weights(load_autoencoder(str(tmp_path / name))) == hash_weights(pipeline.vae)


def test_a_runs_folder_stands_for_the_model_in_it(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("run/model")
    pipeline.vae.save_pretrained("alone/model")
    for name in ("run", "run/model", str(tmp_path / "run"), "alone"):
        assert Path(find_model(name)).samefile(name if "model" in name else f"{name}/model")
        assert hash_weights(load_autoencoder(name)) == hash_weights(pipeline.vae)
        assert is_own(name)
    assert hash_weights(load_denoiser("run")[0]) == hash_weights(pipeline.unet)
    assert find_model("fashion-mnist") == str(PRETRAINED / "fashion-mnist")
    assert find_model("ada/model") == "ada/model"
    assert not is_own("fashion-mnist") and not is_own("ada/model")


def test_a_model_beside_another_named_model_is_itself(pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path)
    pipeline.save_pretrained(tmp_path / "model")
    assert find_model(str(tmp_path)) == str(tmp_path)


def test_other_models_and_missing_ones_are_refused(pipeline, tmp_path):
    pipeline.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="is a UNet2DModel"):
        load_autoencoder(str(tmp_path / "unet"))
    with pytest.raises(UserError, match="no autoencoder found at"):
        load_autoencoder(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no autoencoder found at"):
        load_autoencoder(str(tmp_path / "empty"))


def test_missing_weights_are_an_error(pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_out.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: decoder\.conv_out\.bias"):
        load_autoencoder(str(tmp_path))


def test_weights_of_another_autoencoder_are_an_error(pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path) | {"decoder.extra": torch.zeros(1)}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unexpected: decoder\.extra"):
        load_autoencoder(str(tmp_path))


def test_a_damaged_folder_is_one_line(tmp_path, capfd):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="no autoencoder found at") as caught:
        load_autoencoder(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("library", [diffusers_logging, transformers_logging])
def test_the_libraries_own_messages_are_silenced(caplog, library):
    logger = library.get_logger()
    logger.addHandler(caplog.handler)
    with pytest.raises(UserError), loading("nowhere", "model"):
        logger.error("a line of the library's own")
        raise OSError("missing")
    assert not caplog.messages
    logger.error("after it they speak again")
    logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"after it they speak again"}


def test_pickled_weights_are_not_loaded(pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipeline.vae.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="no autoencoder found at"):
        load_autoencoder(str(tmp_path))


@pytest.mark.parametrize("kind", ["vae", "pipeline"])
def test_a_folder_without_a_model_does_not_hide_a_released_model(
    pipeline, tmp_path, monkeypatch, kind
):
    name = "fashion-mnist-f4"
    released = hash_weights(load_autoencoder(str(PRETRAINED / name)))
    monkeypatch.chdir(tmp_path)
    assert hash_weights(load_autoencoder(name)) == released
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    assert hash_weights(load_autoencoder(name)) == released
    (pipeline if kind == "pipeline" else pipeline.vae).save_pretrained(tmp_path / name)
    assert hash_weights(load_autoencoder(name)) == hash_weights(pipeline.vae) != released


@pytest.mark.parametrize("objective", ["flow", "epsilon", "v_prediction", "sample"])
def test_a_denoiser_alone_and_in_a_pipeline_with_its_scheduler(pipeline, tmp_path, objective):
    parts = (pipeline.vae, pipeline.unet, create_scheduler(objective))
    pipeline = LatentDiffusionPipeline(*parts)
    pipeline.save_pretrained(tmp_path / "pipeline")
    pipeline.unet.save_pretrained(tmp_path / "unet")
    unet, scheduler = load_denoiser(str(tmp_path / "pipeline"))
    alone, none = load_denoiser(str(tmp_path / "unet"))
    assert hash_weights(unet) == hash_weights(alone) == hash_weights(pipeline.unet)
    assert get_objective(scheduler) == objective
    assert same_noise_levels(pipeline.scheduler, scheduler)
    assert none is None


def test_a_denoiser_with_prompts_alone_and_in_a_pipeline(tmp_path):
    words = make_words()
    words.save_pretrained(tmp_path / "pipeline")
    words.unet.save_pretrained(tmp_path / "unet")
    for name in ("pipeline", "unet"):
        unet, _ = load_denoiser(str(tmp_path / name))
        assert type(unet).__name__ == "UNet2DConditionModel"
        assert hash_weights(unet) == hash_weights(words.unet)
    assert hash_weights(load_autoencoder(str(tmp_path / "pipeline"))) == hash_weights(words.vae)


def test_what_is_no_denoiser_is_refused_in_one_line(pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="vae is a AutoencoderKL, not a UNet2DModel or UNet2DCond"):
        load_denoiser(str(tmp_path / "vae"))
    with pytest.raises(UserError, match="no denoiser found at") as raised:
        load_denoiser(str(tmp_path / "missing"))
    assert "\n" not in str(raised.value)


def test_pickled_and_foreign_weights_of_a_denoiser_are_not_loaded(pipeline, tmp_path):
    pipeline.unet.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path) | {"extra": torch.zeros(1)}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="unexpected: extra"):
        load_denoiser(str(tmp_path))
    path.unlink()
    torch.save(pipeline.unet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="no denoiser found at"):
        load_denoiser(str(tmp_path))


def test_a_pipeline_with_a_foreign_scheduler_is_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("UniPCMultistepScheduler", "UNet2DModel"))
    with pytest.raises(UserError, match="UNet2DModel is no diffusers scheduler"):
        load_denoiser(str(tmp_path))


def test_only_a_released_pipeline_may_name_its_autoencoder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    weights.unlink()
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(read_json(config) | {"_name_or_path": "fashion-mnist-f4"}))
    with pytest.raises(UserError, match="no autoencoder found"):
        load_autoencoder(str(tmp_path))
    with pytest.raises(EnvironmentError):
        LatentDiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "secret", "", None])
def test_a_released_pipeline_names_released_models_only(pipeline, tmp_path, monkeypatch, name):
    pipeline.vae.save_pretrained(tmp_path / "secret")
    monkeypatch.setattr(load, "PRETRAINED", tmp_path / "pretrained")
    folder = tmp_path / "pretrained" / "clothes"
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text(json.dumps({"_name_or_path": name}))
    assert load.find_component(str(folder), "vae") == (str(folder), "vae")
