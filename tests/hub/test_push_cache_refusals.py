"""What `hf-latent push` refuses: one line, status 2, nothing sent, and never the token."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.hub.conftest import TOKEN


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "there is no token for the Hub: run hf auth login, or set HF_TOKEN"),
        ("hf_unknown", "the Hub does not know this token"),
        ("hf_reader", "this token may not write to ada/latents"),
        ("hf_other", "this token may not write to ada/latents"),
        ("hf_ctrl\x0bsecret", "the token for the Hub has characters that no token has"),
        ("hf_schlüsselsecret", "the token for the Hub has characters that no token has"),
    ],
)
def test_a_token_that_may_not_is_one_line(hub, push, token, says):
    hub.add_token("hf_reader", "ada", "read")
    hub.add_token("hf_other", "eve")
    outcome = push(token=token)
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {says}") and outcome.err.count("\n") == 1
    assert "secret" not in outcome.err
    assert hub.repos == {}


def test_a_private_data_set_of_another_is_one_line(hub, push):
    hub.put("eve/hidden", {}, private=True)
    outcome = push(repo_id="eve/hidden")
    assert outcome.status == 2
    assert outcome.err.startswith("error: this token may not write to eve/hidden")
    assert outcome.err.count("\n") == 1


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


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--license", "no such licence"], '"license\\" must be one of the known licences'),
        (["--create_pr", "--revision", "x"], "--create_pr makes a revision of its own"),
        (["--revision", "refs/pr/7"], "ada/latents has no such --revision on the Hub"),
    ],
)
def test_flags_that_cannot_work_are_one_line(hub, push, flags, says):
    outcome = push(*flags)
    assert outcome.status == 2
    assert says in outcome.err and outcome.err.count("\n") == 1
    assert hub.asked("commit") == []


def test_a_hub_that_is_not_there_is_one_line(hub, push):
    away = "import huggingface_hub.constants as c; c.ENDPOINT = 'http://127.0.0.1:9'"
    outcome = push(before=away)
    assert outcome.status == 2
    assert outcome.err.startswith("error: the Hub cannot be reached or is in trouble (")
    assert outcome.err.count("\n") == 1
    offline = push(before="import huggingface_hub.constants as c; c.HF_HUB_OFFLINE = True")
    assert offline.err == "error: HF_HUB_OFFLINE is set, so nothing can be sent: unset it\n"


def test_a_gitignore_on_the_hub_is_found_out(hub, push):
    hub.put("ada/latents", {".gitignore": b"train-000001*\n"})
    outcome = push()
    assert outcome.status == 2
    assert "still lacks train-000001.safetensors after it was sent" in outcome.err


def change_manifest(cache, **changes):
    path = cache / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(hub, push):
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


def test_the_token_is_in_no_file(hub, push, process, cache, tmp_path):
    hub.fail("commit", how=500)
    assert push().status == 0
    hub.fail("tree", times=100, how=403)
    assert push().status == 2
    for folder in (process.home, tmp_path):
        for path in (Path(x) / name for x, _, names in os.walk(folder) for name in names):
            assert TOKEN.encode() not in path.read_bytes(), path
    sent = {x: blob.data for x, blob in hub.repos["datasets", "ada/latents"].files("main").items()}
    assert all(TOKEN.encode() not in data for data in sent.values())
