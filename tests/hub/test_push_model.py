"""What `hf-latent push --model` sends, and what it does not touch."""

import json
import shutil

import pytest
import torch

from hf_latent.hub.card.signature import is_unedited, sign
from tests.conftest import make_autoencoder
from tests.hub.conftest import assert_model_is_whole, folder_files, model_files

REPO = "ada/model"
CARD = "---\nlicense: mit\n---\n# Mine\n"


def history(hub, repo_id=REPO):
    return [set(files) for _, _, files in hub.repos["models", repo_id].history]


def test_a_pipeline_and_its_card_are_sent_in_one_commit(hub, push_model, model):
    outcome = push_model()
    assert outcome.status == 0, outcome.err
    files = {k: len(v) for k, v in folder_files(model).items() if k != "README.md"}
    size = sum(files.values())
    assert outcome.out == (
        f"LatentDiffusionPipeline of {size / 1e6:.1f} MB in {len(files)} files, sent: "
        f"{hub.endpoint}/{REPO}\n"
    )
    assert "not sent" not in outcome.err
    assert_model_is_whole(model_files(hub), model)
    assert len(history(hub)) == 1
    assert not hub.repos["models", REPO].private
    assert ("datasets", REPO) not in hub.repos


def test_an_autoencoder_is_sent(hub, push_model, vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    assert push_model(folder=tmp_path / "vae").status == 0
    assert_model_is_whole(model_files(hub), tmp_path / "vae")


def test_shards_and_variants_are_sent(hub, push_model, pipeline, tmp_path):
    folder = tmp_path / "large"
    pipeline.save_pretrained(folder, max_shard_size="100KB")
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16", max_shard_size="100KB")
    names = {path.name for path in (folder / "unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert any(name.startswith("diffusion_pytorch_model-00002-of-") for name in names)
    assert push_model(folder=folder).status == 0
    assert_model_is_whole(model_files(hub), folder)


def test_the_folder_of_a_run_stands_for_its_model(hub, push_model, model):
    (model.parent / "config.yaml").write_text("seed: 0\n")
    assert push_model(folder=model.parent).status == 0
    assert_model_is_whole(model_files(hub), model)


def test_reports_and_shown_pictures_go_along(hub, push_model, model):
    for name in ("training.json", "metrics.json"):
        (model / name).write_text("{}")
    (model / "config.yaml").write_text("seed: 0\n")
    (model / "samples.png").write_bytes(b"shown")
    (model / "other.png").write_bytes(b"not shown")
    card = CARD + "![a](samples.png) ![b](../model/other.png) ![c](missing.png)\n"
    (model / "README.md").write_text(card)
    outcome = push_model()
    assert outcome.err.splitlines()[0] == "warning: not sent, not part of the model: other.png"
    kept = folder_files(model)
    del kept["other.png"]
    assert model_files(hub) == kept


def test_nothing_else_of_the_folder_goes_along(hub, push_model, model, tmp_path):
    planted = {
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "vae/data.pkl": b"pickle",
        "weights.pt": b"pickle",
        "last.ckpt": b"pickle",
        "setup.py": b"print()",
        "notes/a.txt": b"a",
        "unet/deep/config.json": b"{}",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"of no index",
        "optimizer.safetensors": b"",
        ".env": b"secret",
    }
    for name, data in planted.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(data)
    (tmp_path / "secret").write_text("secret")
    for name in ("metrics.json", "config.yaml", "shown.png"):
        (model / name).symlink_to(tmp_path / "secret")
    (model / "README.md").write_text(f"{CARD}![a](shown.png) ![b](weights.pt)\n")
    outcome = push_model()
    assert outcome.status == 0, outcome.err
    names = {"config.yaml", "metrics.json", "shown.png", *planted}
    sent = model_files(hub)
    assert not names & sent.keys()
    assert sent == {k: v for k, v in folder_files(model).items() if k not in names}
    assert outcome.err.splitlines()[0] == (
        "warning: not sent, not part of the model: config.yaml, last.ckpt, metrics.json, notes, "
        "optimizer.safetensors and 7 more"
    )
    assert b"secret" not in hub.stored.values() and b"pickle" not in hub.stored.values()


def test_a_second_push_sends_nothing(hub, push_model):
    push_model()
    outcome = push_model()
    assert outcome.status == 0
    assert " files, already there: " in outcome.out
    assert len(hub.asked("commit/main")) == 1
    assert len(hub.asked("^PUT /lfs/")) == 2


def test_a_changed_file_alone_is_sent_again(hub, push_model, pipeline, model):
    push_model()
    pipeline.unet.conv_out.bias.data += 1
    pipeline.save_pretrained(model)
    assert push_model().status == 0
    assert_model_is_whole(model_files(hub), model)
    assert len(history(hub)) == 2
    assert len(hub.asked("^PUT /lfs/")) == 3


def test_a_changed_model_takes_the_place_of_the_old_one_in_one_commit(
    hub, push_model, pipeline, model
):
    hub.page_size = 2
    push_model()
    for part in (pipeline.vae.decoder.conv_out, pipeline.unet.conv_out):
        part.bias.data += 1
    pipeline.save_pretrained(model)
    assert push_model().status == 0
    assert len(history(hub)) == 2
    assert_model_is_whole(model_files(hub), model)


def test_files_of_an_earlier_model_are_removed_and_no_others(hub, push_model, pipeline, tmp_path):
    folder = tmp_path / "large"
    pipeline.save_pretrained(folder, max_shard_size="100KB")
    for name in ("training.json", "metrics.json"):
        (folder / name).write_text('{"vae_weights_sha256": "00"}')
    assert push_model(folder=folder).status == 0
    foreign = {
        "notes.txt": b"mine",
        "diffusion_pytorch_model.safetensors": b"mine",
        "config.json": b"{}",
        "unet/notes.txt": b"mine",
        "unet/diffusion_pytorch_model.bin": b"mine",
        "text/diffusion_pytorch_model.safetensors": b"mine",
        "text/config.json": b"{}",
        "checkpoint-1/state.json": b"{}",
        "other.py": b"",
        "other.png": b"mine",
    }
    hub.put(REPO, foreign, kind="models")
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder)
    assert push_model(folder=folder).status == 0
    sent = model_files(hub)
    assert {name: sent.pop(name) for name in foreign} == foreign
    assert_model_is_whole(sent, folder)


def test_files_of_an_earlier_autoencoder_are_removed_and_no_others(hub, push_model, vae, tmp_path):
    folder = tmp_path / "vae"
    vae.save_pretrained(folder, max_shard_size="10KB")
    assert push_model(folder=folder).status == 0
    foreign = {"unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"mine"}
    hub.put(REPO, foreign, kind="models")
    shutil.rmtree(folder)
    vae.save_pretrained(folder)
    assert push_model(folder=folder).status == 0
    sent = model_files(hub)
    assert {name: sent.pop(name) for name in foreign} == foreign
    assert_model_is_whole(sent, folder)


def test_pictures_of_an_earlier_card_are_removed_unless_they_are_shown(hub, push_model, model):
    push_model()
    text = sign(CARD + "![a](old.png) ![b](both.png)\n")
    hub.put(REPO, {"README.md": text.encode(), "old.png": b"o", "both.png": b"b"}, kind="models")
    (model / "both.png").write_bytes(b"b")
    (model / "README.md").write_text(CARD + "![b](both.png)\n")
    assert push_model().status == 0
    assert model_files(hub) == folder_files(model)
    assert len(history(hub)) == 3  # the second is not a push


def test_remains_of_an_unfinished_push_are_removed_and_no_other_files(hub, push_model, model):
    remains = ("unet/diffusion_pytorch_model-00001-of-00009.safetensors", "training.json")
    foreign = {
        "diffusion_pytorch_model.safetensors": b"mine",
        "old/diffusion_pytorch_model.safetensors": b"mine",
        "unet/notes.json": b"{}",
    }
    ours = dict.fromkeys(remains, b'{"vae_weights_sha256": "00"}')
    hub.put(REPO, foreign | ours, kind="models")
    assert push_model().status == 0
    sent = model_files(hub)
    assert {name: sent.pop(name) for name in foreign} == foreign
    assert_model_is_whole(sent, model)
    assert len(history(hub)) == 2  # the files above, and one push


def test_code_of_an_earlier_version_is_removed_and_no_other(hub, push_model, model):
    push_model()
    earlier, foreign = {"class_labels.py": b"old", "upcast.py": b"old"}, {"other.py": b"mine"}
    edited = {"README.md": model_files(hub)["README.md"] + b"edited"}
    hub.put(REPO, earlier | foreign | edited, kind="models")
    assert push_model().status == 0
    sent = model_files(hub)
    assert not earlier.keys() & sent.keys()
    assert {name: sent.pop(name) for name in foreign} == foreign


@pytest.mark.parametrize("kind", ["pipeline", "autoencoder"])
def test_files_of_the_same_names_that_no_push_sent_stay(hub, push_model, model, kind):
    foreign = dict.fromkeys(("notes.py", "config.yaml", "metrics.json"), b"{}")
    folder = model
    if kind == "autoencoder":  # never has code
        foreign |= {"encode.py": b"mine", "pipeline.py": b"mine"}
        folder = model / "vae"
    for name in ("training.json", "config.yaml", "metrics.json"):
        (folder / name).unlink(missing_ok=True)
    hub.put(REPO, foreign, kind="models")
    assert push_model(folder=folder).status == 0
    sent = model_files(hub)
    assert {name: sent[name] for name in foreign} == foreign


def write_checkpoints(run, *steps):
    for step in steps:
        folder = run / f"checkpoint-{step}"
        for name in ("vae", "vae_ema", "vae_ema_050"):
            make_autoencoder().save_pretrained(folder / name)
        shutil.copy(
            folder / "vae" / "diffusion_pytorch_model.safetensors",
            folder / "vae_optimizer.safetensors",
        )
        (folder / "state.json").write_text(json.dumps({"step": step, "saved_at": step}))


def test_checkpoints_go_along_only_when_asked(hub, push_model, model):
    run = model.parent
    write_checkpoints(run, 2, 4)
    expected = folder_files(run)
    (run / "checkpoint-4" / "random_states_0.pkl").write_bytes(b"pickle")
    (run / ".checkpoint-4.removed").mkdir()
    (run / "checkpoint-last").mkdir()
    assert push_model(folder=run).status == 0
    assert not any("checkpoint" in name for name in model_files(hub))
    hub.put(REPO, {"checkpoint-1/state.json": b"{}"}, kind="models")
    assert push_model("--checkpoints", folder=run).status == 0
    sent = {k: v for k, v in model_files(hub).items() if k.startswith("checkpoint")}
    assert sent.pop("checkpoint-1/state.json") == b"{}"
    assert sent == {k: v for k, v in expected.items() if k.startswith("checkpoint")}
    assert push_model(folder=run).status == 0
    assert "checkpoint-2/state.json" in model_files(hub)
    outcome = push_model("--checkpoints")
    assert outcome.status == 2
    assert outcome.err == (
        f"error: --checkpoints: {model} has no checkpoint-N: pass the folder of the run as "
        "--model\n"
    )


def test_a_push_that_was_cut_off_resumes(hub, push_model, model):
    hub.fail("commit/main", times=100, how="drop")
    outcome = push_model()
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: the Hub cannot be reached")
    assert "run the same command later" in last
    assert len(hub.asked("commit/main")) > 2
    assert not model_files(hub)
    hub.faults.clear()
    assert push_model().status == 0
    assert_model_is_whole(model_files(hub), model)
    assert len(hub.asked("^PUT /lfs/")) == 2  # each once


KILLED = """
import huggingface_hub.hf_api as api, os, signal
def create_commit(self, *arguments, **named):
    self.preupload_lfs_files(
        named["repo_id"], named["operations"], repo_type=named["repo_type"], revision="main"
    )
    os.kill(os.getpid(), signal.SIGKILL)
api.HfApi.create_commit = create_commit
"""


def test_a_push_that_was_killed_after_the_weights_sends_none_again(hub, push_model, model):
    assert push_model(before=KILLED).status == -9
    assert model_files(hub) == {} and len(hub.stored) == 2
    assert push_model().status == 0
    assert_model_is_whole(model_files(hub), model)
    assert len(hub.asked("^PUT /lfs/")) == 2


def test_temporary_failures_are_retried(hub, push_model, model):
    hub.fail("validate-yaml", how=502)
    hub.fail("repos/create", how="lost")
    hub.fail("GET /api/models/ada/model/tree", how=500)
    hub.fail("preupload", how=503)
    hub.fail("objects/batch", how="drop")
    hub.fail("PUT /lfs", how=500)
    hub.fail("PUT /lfs", how="drop", after=1)
    hub.fail("commit/main", how=504)
    hub.fail("commit/main", how="lost")
    assert push_model().status == 0
    assert not any(times for _, times, *_ in hub.faults)
    assert_model_is_whole(model_files(hub), model)
    assert len(history(hub)) == 1  # the lost commit is not repeated
    hub.fail("auth-check", how=503)
    hub.fail("GET .*README.md", how="cut")
    assert push_model().status == 0
    assert not any(times for _, times, *_ in hub.faults)


def test_a_pull_request_is_one_and_leaves_main_alone(hub, push_model, model):
    hub.put("eve/model", {"notes.txt": b"eve's"}, kind="models")
    hub.fail("commit/main", how="lost")  # opened, but the answer did not arrive
    outcome = push_model("--create_pr", repo_id="eve/model")
    assert outcome.status == 0, outcome.err
    outcome = push_model("--create_pr", "--license", "mit", repo_id="eve/model")
    assert outcome.out.endswith(f" {hub.endpoint}/eve/model/discussions/1\n"), outcome.err
    repo = hub.repos["models", "eve/model"]
    assert len(repo.pull_requests) == 1
    assert list(model_files(hub, repo_id="eve/model")) == ["notes.txt"]
    sent = model_files(hub, "refs/pr/1", "eve/model")
    assert sent.pop("notes.txt") == b"eve's"
    sent["README.md"] = sent["README.md"].replace(b"eve/model", b"ada/model")
    kept = {k: v for k, v in folder_files(model).items() if k != "README.md"}
    assert {k: v for k, v in sent.items() if k != "README.md"} == kept
    # Its author can also push to it by name.
    assert push_model("--revision", "refs/pr/1", repo_id="eve/model").status == 0
    assert len(repo.pull_requests) == 1


def test_another_model_is_another_pull_request(hub, push_model, pipeline, model):
    hub.put(REPO, {}, kind="models")
    assert push_model("--create_pr").status == 0
    pipeline.unet.conv_out.bias.data += 1
    pipeline.save_pretrained(model)
    assert push_model("--create_pr").status == 0
    assert len(hub.repos["models", REPO].pull_requests) == 2


def test_a_branch_is_made_and_main_left_alone(hub, push_model, model):
    outcome = push_model("--revision", "half")
    assert outcome.out.endswith(f" {hub.endpoint}/{REPO}/tree/half\n")
    assert model_files(hub) == {}
    assert_model_is_whole(model_files(hub, "half"), model)
    assert "already there" in push_model("--revision", "half").out


def test_private_is_private(hub, push_model):
    assert push_model("--private").status == 0
    assert hub.repos["models", REPO].private
    assert "already there" in push_model("--private").out


def test_an_edited_card_of_the_folder_is_sent_unchanged(hub, push_model, model):
    for card in (CARD, "# Mine, without metadata\n"):
        (model / "README.md").write_text(card)
        assert push_model("--overwrite_card").status == 0
        assert model_files(hub)["README.md"].decode() == card
        outcome = push_model()
        assert "already there" in outcome.out and "edited" not in outcome.err


def test_a_push_does_not_change_the_folder(hub, push_model, model):
    before = folder_files(model)
    assert push_model("--license", "mit").status == 0
    assert folder_files(model) == before
    assert b'from_pretrained("ada/model"' not in before["README.md"]


def test_an_edited_card_on_the_hub_is_kept(hub, push_model, pipeline, model):
    push_model()
    edited = model_files(hub)["README.md"] + b"![a](mine.png) ![b](ours.png)\n"
    hub.put(REPO, {"README.md": edited, "mine.png": b"mine"}, kind="models")
    (model / "ours.png").write_bytes(b"ours")
    pipeline.unet.conv_out.bias.data += 1
    pipeline.save_pretrained(model)
    outcome = push_model()
    assert outcome.status == 0
    assert outcome.err.endswith(
        "warning: the README.md of ada/model was edited and is kept; "
        "--overwrite_card true replaces it\n"
    )
    sent = model_files(hub)
    assert (sent["README.md"], sent["mine.png"], sent["ours.png"]) == (edited, b"mine", b"ours")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert sent[weights] == (model / weights).read_bytes()
    outcome = push_model("--overwrite_card")
    assert "edited" not in outcome.err
    assert is_unedited(model_files(hub)["README.md"].decode())


def test_a_card_keeps_the_license_that_it_has_on_the_hub(hub, push_model, model):
    push_model("--license", "mit")
    (model / "metrics.json").write_text("{}")
    push_model()
    assert b"\nlicense: mit\n" in model_files(hub)["README.md"]
    push_model("--license", "cc-by-4.0")
    assert b"\nlicense: cc-by-4.0\n" in model_files(hub)["README.md"]
