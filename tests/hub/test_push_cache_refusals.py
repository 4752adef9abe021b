"""Caches that `hf-latent push --cache` refuses: one line, status 2, nothing sent."""

import json
import shutil

import pytest


@pytest.mark.parametrize(
    "repo_id", ["latents", "datasets/ada/latents", "ada/", "ada/a--b", "ada/../b", "ada/la tents"]
)
def test_a_malformed_name_is_one_line_and_no_request(hub, push, repo_id):
    outcome = push(repo_id=repo_id)
    assert outcome.status == 2
    assert outcome.err == f"error: --repo_id {repo_id} is not of the form user/name\n"
    assert hub.requests == []


def test_the_name_of_a_model_is_refused(hub, push):
    hub.put("ada/latents", {"config.json": b"{}"}, kind="models")
    outcome = push()
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("error: ada/latents is a model on the Hub")
    assert list(hub.repos) == [("models", "ada/latents")]


def test_a_gitignore_on_the_hub_is_found_out(hub, push):
    hub.put("ada/latents", {".gitignore": b"train-000001*\n"})
    outcome = push()
    assert outcome.status == 2
    assert "still lacks train-000001.safetensors after the push" in outcome.err


def change_manifest(cache, **changes):
    path = cache / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_folder_is_not_searched_on_the_hub(hub, push):
    hub.put("eve/open", {"manifest.json": b"{}"})
    outcome = push(folder="eve/open")
    assert outcome.status == 2
    assert outcome.err == "error: --cache eve/open is not a folder\n"
    assert hub.requests == []


def test_an_unfinished_cache_is_not_sent(hub, push, cache):
    change_manifest(cache, shards={})
    outcome = push()
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert str(cache) in outcome.err
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../secret", "train-000000.pkl", "train-000000.safetensors\n"])
def test_a_manifest_cannot_name_other_files(hub, push, cache, name):
    shards = json.loads((cache / "manifest.json").read_text())["shards"]
    known = shards["train-000000.safetensors"]
    (cache / name).write_bytes((cache / "train-000000.safetensors").read_bytes())
    change_manifest(cache, shards=shards | {name: known})
    outcome = push()
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert hub.requests == []


def test_a_damaged_or_linked_shard_is_not_sent(hub, push, cache, tmp_path):
    shard = cache / "train-000001.safetensors"
    shutil.move(shard, tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    outcome = push()
    assert outcome.status == 2 and "is a link" in outcome.err
    shard.unlink()
    data = bytearray((tmp_path / "elsewhere").read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    outcome = push()
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "train-000001.safetensors" in outcome.err
    assert hub.requests == []
