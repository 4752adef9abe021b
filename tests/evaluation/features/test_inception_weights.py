import hashlib
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from hf_latent.errors import UserError
from hf_latent.evaluation.features import extractors as feature_extractors
from hf_latent.evaluation.features.extractors import load_feature_extractor

VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS = b"the published weights"


def mistake(*parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_feature_extractor("inception")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_inception_without_torch_fidelity_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    mistake("pip install torch-fidelity (the extra `inception`")


@pytest.fixture
def torch_fidelity(monkeypatch, tmp_path):
    """A stand-in for the package and a cache folder of torch.hub; the path of the weights."""

    class FeatureExtractorInceptionV3(nn.Linear):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__(1, 1)
            self.seen = (name, features_list, feature_extractor_weights_path)
            self.variable = os.environ.get(VARIABLE)
            if FeatureExtractorInceptionV3.error is not None:
                raise FeatureExtractorInceptionV3.error

    FeatureExtractorInceptionV3.error = None
    module = ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = FeatureExtractorInceptionV3
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    published = hashlib.sha256(WEIGHTS).hexdigest()
    monkeypatch.setattr(feature_extractors, "INCEPTION_SHA256", published)
    return tmp_path / "hub" / "checkpoints" / FILE_NAME


def put(path, content=WEIGHTS):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_inception_is_loaded_with_weights_only(torch_fidelity, monkeypatch, before):
    put(torch_fidelity)
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    model = load_feature_extractor("inception").model
    assert model.seen == ("inception-v3-compat", ["2048"], str(torch_fidelity))
    assert model.variable == "1"
    assert os.environ.get(VARIABLE) == before
    sys.modules["torch_fidelity"].FeatureExtractorInceptionV3.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        load_feature_extractor("inception")
    assert os.environ.get(VARIABLE) == before


def test_torch_obeys_the_variable(monkeypatch, tmp_path):
    torch.save({"module": nn.Linear(1, 1)}, tmp_path / "pickle.pth")
    torch.load(tmp_path / "pickle.pth", weights_only=False)
    with feature_extractors._weights_only(), pytest.raises(Exception, match=r"(?i)weights only"):
        torch.load(tmp_path / "pickle.pth", weights_only=False)


def test_other_weights_are_rejected_before_they_are_loaded(torch_fidelity):
    put(torch_fidelity, b"other weights")
    error = AssertionError("they were read")
    sys.modules["torch_fidelity"].FeatureExtractorInceptionV3.error = error
    mistake(str(torch_fidelity), "is not the published file: remove it")


def test_weights_are_downloaded_once(torch_fidelity, monkeypatch):
    fetched = []

    def download(url, path, hash_prefix):
        fetched.append((url.rpartition("/")[2], hash_prefix))
        with open(path, "wb") as file:
            file.write(WEIGHTS)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load_feature_extractor("inception")
    load_feature_extractor("inception")
    assert fetched == [(FILE_NAME, hashlib.sha256(WEIGHTS).hexdigest())]


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("invalid hash")])
def test_weights_that_cannot_be_downloaded_are_one_line(torch_fidelity, monkeypatch, error):
    def download(*arguments):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    mistake(str(error), f"put that file at {torch_fidelity}", "https://github.com/")
    assert not torch_fidelity.exists()
