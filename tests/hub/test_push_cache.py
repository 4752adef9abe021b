import hashlib

import pytest

from tests.hub.conftest import TOKEN, write_cache

REPO = "ada/latents"


def files(hub, rev="main", repo_id=REPO):
    found = hub.repos["datasets", repo_id].files(rev)
    return {path: blob.data for path, blob in found.items() if path != ".gitattributes"}


def assert_whole(sent, folder):
    """Check that the files of a cache and a card were sent, and nothing else."""
    kept = {
        p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".safetensors", ".json")
    }
    card = sent.pop("README.md").decode()
    assert sent == kept
    assert "latent-diffusion" in card


def test_a_cache_and_its_card_are_sent_in_one_commit(hub, push, cache):
    outcome = push()
    assert outcome.status == 0, outcome.err
    url = f"{hub.endpoint}/datasets/{REPO}"
    assert outcome.out == f"latents of 7 images in 4 files, sent: {url}\n"
    assert_whole(files(hub), cache)
    assert len(hub.repos["datasets", REPO].history) == 1
    assert not hub.repos["datasets", REPO].private
    assert ("models", REPO) not in hub.repos


def test_nothing_else_of_the_folder_goes_along(hub, push, cache, tmp_path):
    (cache / "data.pkl").write_bytes(b"pickle")
    (cache / "model.bin").write_bytes(b"bin")
    (cache / "setup.py").write_text("print()")
    (cache / "inner").mkdir()
    (cache / "inner" / "train-000000.safetensors").write_bytes(b"inner")
    (tmp_path / "secret").write_text("secret")
    (cache / "train-000009.safetensors").symlink_to(tmp_path / "secret")
    assert push().status == 0
    for planted in ("data.pkl", "model.bin", "setup.py", "inner", "train-000009.safetensors"):
        assert not any(name.startswith(planted) for name in files(hub))
    assert len(files(hub)) == 6
    assert b"secret" not in hub.stored.values()


def test_what_was_sent_is_read_again_by_stock_code(hub, push, process, cache, tmp_path):
    assert push("--private").status == 0
    read = """
import sys
from pathlib import Path
from huggingface_hub import snapshot_download
from hf_latent.data.latents.cache import LatentCache
folder = snapshot_download("ada/latents", repo_type="dataset", local_dir=target)
cache = LatentCache(Path(folder))
cache.verify()
print(cache.manifest["splits"]["train"]["rows"])
"""
    target, hidden = tmp_path / "read", tmp_path / "hidden"
    assert process.run(f"target = {str(target)!r}" + read, TOKEN).out == "5\n"
    assert (target / "manifest.json").read_bytes() == (cache / "manifest.json").read_bytes()
    assert process.run(f"target = {str(hidden)!r}" + read).status == 1  # private: needs the token


def test_a_second_push_sends_nothing(hub, push):
    push()
    before = len(hub.requests)
    outcome = push()
    assert outcome.status == 0
    assert "files, already there: " in outcome.out
    assert {x.method for x in hub.requests[before:]} <= {"GET", "HEAD", "POST"}
    assert len(hub.asked("commit/main")) == 1
    assert len(hub.asked("^PUT /lfs/")) == 4


def test_a_cache_comes_whole_in_one_commit(hub, push, cache):
    hub.page_size = 2
    assert push().status == 0
    assert len(hub.repos["datasets", REPO].history) == 1
    assert_whole(files(hub), cache)


def test_shards_are_sent_by_xet_too(hub, push, cache, tmp_path):
    hub.xet = f"local://{tmp_path / 'storage'}"  # a folder in place of the Xet server
    shards = [path.read_bytes() for path in cache.glob("*.safetensors")]
    hub.stored |= {hashlib.sha256(shard).hexdigest(): shard for shard in shards}
    with_xet = "import huggingface_hub.constants as c; c.HF_HUB_DISABLE_XET = False; "
    assert push(before=with_xet).status == 0
    assert_whole(files(hub), cache)
    assert hub.asked("xet-write-token") and not hub.asked("lfs")
    assert sum(x.stat().st_size for x in (tmp_path / "storage").rglob("*") if x.is_file())


def test_another_cache_takes_the_place_of_the_one_there(hub, push, cache, tmp_path):
    larger = write_cache(tmp_path / "larger", train_rows=9, seed=1)
    assert push(folder=larger).status == 0
    hub.put(REPO, {"notes.txt": b"mine", "train-abc.safetensors": b"mine"})
    assert push().status == 0
    *_, before, after = [set(files) for _, _, files in hub.repos["datasets", REPO].history]
    assert before - after == {"train-000003.safetensors", "train-000004.safetensors"}
    sent = files(hub)
    assert sent.pop("notes.txt") == sent.pop("train-abc.safetensors") == b"mine"
    assert b"7 images" in sent["README.md"]
    assert_whole(sent, cache)


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        b"{",
        b"[]",
        b'{"shards": ["validation-000099.safetensors"]}',
        b'{"shards": {"notes.txt": {}, "train-000042.safetensors": {}}}',
    ],
)
def test_files_that_are_only_named_like_shards_are_not_removed(hub, push, cache, manifest):
    foreign = {"train-000009.safetensors": b"mine", "validation-000099.safetensors": b"mine"}
    foreign["notes.txt"] = b"mine"
    hub.put(REPO, foreign | ({"manifest.json": manifest} if manifest else {}))
    assert push().status == 0
    sent = files(hub)
    assert {name: sent.pop(name) for name in foreign} == foreign
    assert_whole(sent, cache)


def test_a_push_that_was_cut_off_resumes(hub, push, cache):
    hub.fail("commit/main", times=100, how="drop")
    outcome = push()
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: the Hub cannot be reached")
    assert "run the same command later" in last
    assert len(hub.asked("commit/main")) > 2
    assert not files(hub)
    hub.faults.clear()
    assert push().status == 0
    assert_whole(files(hub), cache)
    assert len(hub.asked("^PUT /lfs/")) == 4  # each shard once


KILLED = """
import huggingface_hub as api, os, signal
def create_commit(self, *arguments, **named):
    added = [x for x in named["operations"] if isinstance(x, api.CommitOperationAdd)]
    self.preupload_lfs_files(
        named["repo_id"], added, repo_type=named["repo_type"], revision="main"
    )
    os.kill(os.getpid(), signal.SIGKILL)
api.HfApi.create_commit = create_commit
"""


def test_a_push_that_was_killed_before_its_commit_resumes(hub, push, cache, tmp_path):
    other = write_cache(tmp_path / "other", train_rows=9, seed=1)
    assert push(folder=other).status == 0
    assert push(before=KILLED).status == -9
    assert_whole(files(hub), other)
    assert push().status == 0
    assert_whole(files(hub), cache)
    assert len(hub.asked("^PUT /lfs/")) == 6 + 4  # each shard once


def test_temporary_failures_are_retried(hub, push, cache):
    hub.fail("validate-yaml", how=502)
    hub.fail("validate-yaml", how=502, after=2)  # within the commit: a page in place of JSON
    hub.fail("repos/create", how="lost")
    hub.fail("GET /api/datasets/ada/latents/tree", how=500)
    hub.fail("preupload", how=503)
    hub.fail("objects/batch", how="drop")
    hub.fail("PUT /lfs", how=500)
    hub.fail("PUT /lfs", how="drop", after=1)
    hub.fail("commit/main", how=504)
    hub.fail("commit/main", how="lost")
    assert push().status == 0
    assert not any(times for _, times, *_ in hub.faults)
    assert_whole(files(hub), cache)
    assert len(hub.repos["datasets", REPO].history) == 1  # the lost commit is not repeated


def test_a_pull_request_is_one_and_leaves_main_alone(hub, push, cache):
    hub.put(REPO, {"README.md": b"---\n---\nof another\n"})
    hub.fail("commit/main", how="lost")  # opened, but the answer did not arrive
    outcome = push("--create_pr", "--overwrite_card")
    assert outcome.status == 0, outcome.err
    assert outcome.out.endswith(f"{hub.endpoint}/datasets/{REPO}/discussions/1\n")
    repo = hub.repos["datasets", REPO]
    assert len(repo.pull_requests) == 1
    assert [rev for rev, *_ in repo.history] == ["main", "refs/pr/1"]
    assert list(files(hub)) == ["README.md"]
    assert_whole(files(hub, "refs/pr/1"), cache)


def test_a_cut_off_pull_request_resumes(hub, push, cache):
    hub.put(REPO, {})
    hub.add_token("hf_other", "eve")
    hub.fail("commit/main", times=100, how="drop")
    assert push("--create_pr").status == 2
    hub.faults.clear()
    for _ in range(2):
        assert push("--create_pr").status == 0
    repo = hub.repos["datasets", REPO]
    assert len(repo.pull_requests) == 1
    assert_whole(files(hub, "refs/pr/1"), cache)
    assert push("--create_pr", token="hf_other").status == 0  # of another user: another one
    assert len(repo.pull_requests) == 2
    repo.pull_requests[0]["status"] = "closed"
    assert push("--create_pr").status == 0  # and a closed one is not used again
    assert len(repo.pull_requests) == 3


def test_a_branch_is_made_and_main_left_alone(hub, push, cache):
    outcome = push("--revision", "half")
    assert outcome.out.endswith(f"/datasets/{REPO}/tree/half\n")
    assert files(hub) == {}
    assert_whole(files(hub, "half"), cache)
    assert "already there" in push("--revision", "half").out


def test_private_is_private(hub, push):
    assert push("--private").status == 0
    assert hub.repos["datasets", REPO].private
    assert "already there" in push("--private").out


def test_a_public_data_set_is_refused_where_a_private_one_was_asked_for(hub, push):
    hub.put(REPO, {})
    outcome = push("--private", "true")
    assert outcome.status == 2
    assert "ada/latents is public on the Hub, but must be private" in outcome.err
    assert files(hub) == {}


def test_an_edited_card_is_kept(hub, push, cache, tmp_path):
    push()
    edited = files(hub)["README.md"].replace(b"# Latents", b"# My latents")
    hub.put(REPO, {"README.md": edited})
    outcome = push(folder=write_cache(tmp_path / "other", seed=1))
    assert outcome.status == 0
    kept = "the README.md of ada/latents was edited and is kept; --overwrite_card true replaces it"
    assert outcome.err.count(kept) == 1
    assert files(hub)["README.md"] == edited
    assert push(folder=tmp_path / "other").status == 0
    outcome = push("--overwrite_card", folder=tmp_path / "other")
    assert "edited" not in outcome.err
    assert b"# My latents" not in files(hub)["README.md"]


def test_a_card_of_an_earlier_push_is_replaced_and_keeps_its_licence(hub, push, tmp_path):
    push("--license", "mit")
    push(folder=write_cache(tmp_path / "other", train_rows=9))
    card = files(hub)["README.md"]
    assert b"license: mit" in card and b"11 images" in card
    push("--license", "cc-by-4.0", folder=tmp_path / "other")
    assert b"license: cc-by-4.0" in files(hub)["README.md"]
