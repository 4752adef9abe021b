"""What `hf-latent push` refuses: one line, status 2, nothing sent, the token never shown."""

import json
import os
from pathlib import Path

import pytest

from tests.hub.conftest import TOKEN, model_files

READ_ONLY = "this token may not write to ada/model"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "there is no token for the Hub: run hf auth login, or set HF_TOKEN"),
        ("hf_unknown", "the Hub does not know this token"),
        ("hf_reader", READ_ONLY),
        ("hf_other", READ_ONLY),
        ("hf_ctrl\x0bsecret", "the token for the Hub has invalid characters"),
        ("hf_schlüsselsecret", "the token for the Hub has invalid characters"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_read_only_token_is_one_line_before_anything_is_sent(hub, push_model, token, says, there):
    if there:
        hub.put("ada/model", {}, kind="models")
    hub.add_token("hf_reader", "ada", "read")
    hub.add_token("hf_other", "eve")
    outcome = push_model(token=token)
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {says}") and outcome.err.count("\n") == 1
    assert "secret" not in outcome.err
    assert not hub.asked("preupload|lfs|commit")
    assert ("models", "ada/model") in hub.repos if there else hub.repos == {}


def test_a_private_model_of_another_is_one_line(hub, push_model):
    hub.put("eve/hidden", {}, kind="models", private=True)
    outcome = push_model(repo_id="eve/hidden")
    assert outcome.status == 2
    assert outcome.err.startswith("error: this token may not write to eve/hidden")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "pass either --model or --cache"),
        (["--model", "a", "--cache", "b"], "pass either --model or --cache"),
        (["--cache", "b", "--checkpoints"], "--checkpoints go with a --model"),
        (
            ["--model", "a", "--create_pr", "--revision", "x"],
            "--create_pr creates its own",
        ),
        (["--model", "ada/other"], "--model ada/other is not a folder"),
        (["--model", "."], "--model . holds no model"),
    ],
)
def test_wrong_flags_are_one_line_and_no_request(hub, process, arguments, says):
    hub.put("ada/other", {"model_index.json": b"{}"}, kind="models")
    outcome = process.command("push", "--repo_id", "ada/model", *arguments, token=TOKEN)
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {says}") and outcome.err.count("\n") == 1
    assert hub.requests == []


@pytest.mark.parametrize(
    ("card", "flags", "says"),
    [
        (None, ["--license", "no such licence"], "must be one of the known licences"),
        ("---\ntags: 3\n---\n", [], "must be an array"),
        ("---\ntags: [\n---\n", [], "the metadata of "),
        ("# Mine\n", ["--license", "mit"], "is sent unchanged, without --license"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_one_line(hub, push_model, model, card, flags, says):
    if card is not None:
        (model / "README.md").write_text(card)
    outcome = push_model(*flags)
    assert outcome.status == 2
    assert says in outcome.err and outcome.err.count("\n") == 1
    assert hub.repos == {}


def test_a_damaged_model_is_one_line_and_no_request(hub, push_model, model):
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    outcome = push_model()
    assert outcome.status == 2
    assert str(path) in outcome.err and outcome.err.count("\n") == 1
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({"model_index.json": b'{"_class_name": "DDPMPipeline"}'}, "DDPMPipeline"),
        ({"model_index.json": b'{"_class_name": ["x", "Other"]}', "config.json": b""}, "Other"),
        ({"config.json": b'{"_class_name": "AutoencoderKL"}'}, "AutoencoderKL"),
        ({"config.json": b'{"architectures": ["BertModel"]}'}, "another kind of model"),
        ({"model_index.json": b"{"}, "another kind of model"),
        ({"model_index.json": b"[]"}, "another kind of model"),
        ({"model_index.json": b'{"_class_name": []}'}, "another kind of model"),
    ],
)
def test_another_kind_of_model_is_not_overwritten(hub, push_model, files, there):
    hub.put("ada/model", files, kind="models")
    outcome = push_model()
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"error: ada/model has the {next(iter(files))} of {there} on the")
    assert model_files(hub) == files


def test_an_autoencoder_does_not_go_into_a_pipelines_repository(hub, push_model, vae, tmp_path):
    push_model()
    before = model_files(hub)
    vae.save_pretrained(tmp_path / "vae")
    outcome = push_model(folder=tmp_path / "vae")
    assert outcome.status == 2 and "this is AutoencoderKL" in outcome.err
    assert model_files(hub) == before


def test_a_stock_pipeline_needs_a_card_and_keeps_it(hub, push_model, model):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "LDMPipeline"}))
    card = (model / "README.md").read_bytes()
    assert push_model().status == 0
    assert model_files(hub)["README.md"] == card
    (model / "README.md").unlink()
    outcome = push_model()
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err == f"error: {model} has no card: write one, README.md\n"


def test_a_public_model_is_refused_where_a_private_one_was_asked_for(hub, push_model):
    hub.put("ada/model", {}, kind="models")
    outcome = push_model("--private")
    assert outcome.status == 2
    assert "ada/model is public on the Hub, but must be private" in outcome.err
    assert model_files(hub) == {}


def test_a_pull_request_that_is_not_there_is_one_line(hub, push_model):
    outcome = push_model("--revision", "refs/pr/7")
    assert outcome.status == 2
    assert "ada/model has no such --revision on the Hub" in outcome.err
    assert hub.asked("commit") == []


def test_a_hub_that_is_not_there_is_one_line(hub, push_model):
    away = "import huggingface_hub.constants as c; c.ENDPOINT = 'http://127.0.0.1:9'"
    outcome = push_model(before=away)
    assert outcome.status == 2
    assert outcome.err.startswith("error: the Hub cannot be reached or is in trouble (")
    assert outcome.err.count("\n") == 1
    offline = push_model(before="import huggingface_hub.constants as c; c.HF_HUB_OFFLINE = True")
    assert offline.err == "error: HF_HUB_OFFLINE is set, so nothing can be sent: unset it\n"


def test_a_gitignore_on_the_hub_is_found_out(hub, push_model):
    hub.put("ada/model", {".gitignore": b"unet/*.safetensors\n"}, kind="models")
    outcome = push_model()
    assert outcome.status == 2
    assert "still lacks unet/diffusion_pytorch_model.safetensors after the push" in outcome.err


def test_the_token_is_in_no_file(hub, push_model, process, model, tmp_path):
    hub.fail("commit", how=500)
    assert push_model().status == 0
    hub.fail("tree", times=100, how=403)
    assert push_model().status == 2
    for folder in (process.home, tmp_path):
        for path in (Path(x) / name for x, _, names in os.walk(folder) for name in names):
            assert TOKEN.encode() not in path.read_bytes(), path
    assert all(TOKEN.encode() not in data for data in model_files(hub).values())
