"""Saving and loading of a pipeline with a text encoder."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from hf_latent.hub.model_files import MODEL_FILES, model_files
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.saved_files import pipeline_files
from tests.pipeline.test_prompts import draw, make_words

TEXT_FILES = {
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}


@pytest.fixture
def words():
    return make_words()


@pytest.fixture
def folder(words, tmp_path):
    words.save_pretrained(tmp_path)
    return tmp_path


def test_every_file_is_known_and_sent(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(pipeline_files(folder, with_card=True))
    assert found >= TEXT_FILES
    assert all(MODEL_FILES.fullmatch(name) for name in found)
    entry, class_name, names = model_files(folder)
    assert (entry, class_name) == ("model_index.json", "LatentDiffusionPipeline")
    assert {entry, *names} == found


def test_no_file_names_a_path(folder, tmp_path):
    for path in folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
    loaded = LatentDiffusionPipeline.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_plain_diffusers_draws_the_same(words, folder):
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    found, expected = (draw(x, prompt=["a red heart", "cat"]) for x in (loaded, words))
    torch.testing.assert_close(found, expected)


def test_it_is_loaded_without_its_text_encoder(words, folder):
    loaded = LatentDiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    assert loaded.text_encoder is None
    with pytest.raises(ValueError, match=r"^this pipeline has no text_encoder: load it"):
        loaded.save_pretrained(folder)


def test_shards_are_replaced_by_one_file(words, tmp_path):
    words.save_pretrained(tmp_path, max_shard_size="2KB")
    shards = list((tmp_path / "text_encoder").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert hash_weights(loaded.text_encoder) == hash_weights(words.text_encoder)
    model_files(tmp_path)
    words.save_pretrained(tmp_path)
    names = {path.name for path in (tmp_path / "text_encoder").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_half_precision_is_a_variant(words, tmp_path):
    words.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "text_encoder" / "model.fp16.safetensors").is_file()
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    assert {loaded.unet.dtype, loaded.text_encoder.dtype} == {torch.float32}
    half = LatentDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert half.text_encoder.dtype == torch.float16
    assert {"text_encoder/model.fp16.safetensors"} <= set(model_files(tmp_path)[2])


@pytest.mark.parametrize("change", ["missing", "not finite"])
def test_damaged_weights_of_the_text_encoder_are_refused(folder, change):
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    name = next(x for x in weights if "attention" in x)
    weights = {x: w for x, w in weights.items() if change != "missing" or x != name}
    if change == "not finite":
        weights[name] = weights[name] * torch.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=change if change == "not finite" else f"missing: {name}"):
        LatentDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["Trainer", "nothing", None])
def test_a_text_encoder_of_no_class_of_transformers_is_refused(folder, name):
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"architectures": [name]}))
    with pytest.raises(ValueError, match="is no model of transformers"):
        LatentDiffusionPipeline.from_pretrained(folder)


def test_a_denoiser_with_prompts_stays_with_its_settings(words):
    again = LatentDiffusionPipeline(**words.components)
    assert again.config.num_inference_steps == 3
