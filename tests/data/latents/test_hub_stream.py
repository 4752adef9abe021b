"""A stream from a data set repository, over real HTTP."""

import json
import sys
import tempfile
from itertools import islice
from pathlib import Path

import pytest
import torch

from hf_latent.data.latents.store import open_shard_store
from hf_latent.data.latents.stream import LatentStream
from tests import forked
from tests.data.latent_caches import write_latents
from tests.hub.hub_process import HubProcess
from tests.hub.loopback_hub import LoopbackHub

ROWS, SHARD_ROWS, BATCHES = 40, 4, 15
SETTINGS = "batch_size=8, seed=3, horizontal_flip=True, lanes=2, buffer_rows=16"
READ = f"""
import json, sys, tempfile
from itertools import islice
from pathlib import Path
from hf_latent.command import run_command
from hf_latent.data.latents.store import open_shard_store
from hf_latent.data.latents.stream import LatentStream, stream_batches

def read(temporary, batches={BATCHES}, workers=0, revision=None, after_first=lambda: None):
    tempfile.tempdir = temporary
    store = open_shard_store("ada/latents", revision)
    stream = stream_batches(LatentStream(store, {SETTINGS}), workers)
    labels, sums, shards = [], [], []
    for number, batch in enumerate(islice(stream, batches)):
        labels.append(batch.conditions["class_labels"].tolist())
        sums.append(batch.posteriors.mean.double().sum((1, 2, 3)).tolist())
        shards.append(len(list(Path(temporary).rglob("train-*.safetensors"))))
        if number == 0:
            after_first()
    validation = store.open_validation()
    return {{"labels": labels, "sums": sums, "shards": shards, "validation": len(validation)}}
"""


@pytest.fixture(scope="module")
def running_hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def process(running_hub, tmp_path_factory):
    home = tmp_path_factory.mktemp("stream_process")
    modules = ("hf_latent.data.latents.stream", "hf_latent.data.latents.store", "hf_latent.command")
    return HubProcess(running_hub, home, modules)


@pytest.fixture
def cache(tmp_path):
    write_latents(tmp_path / "cache", ROWS, SHARD_ROWS)
    return tmp_path / "cache"


def files(cache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


@pytest.fixture
def hub(running_hub, cache):
    """A Hub with the cache on it."""
    running_hub.clear()
    running_hub.put("ada/latents", files(cache))
    return running_hub


@pytest.fixture
def temporary():
    """A folder with a short path: it holds sockets, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def read(process, hub, temporary):
    """Return what the other process reads from the stream, or its error line."""

    def run(arguments: str = "", before: str = "", workers: int = 0):
        call = f"read({str(temporary)!r}, workers={workers}, {arguments})"
        code = f"{READ}\n{before}\nprint(json.dumps({call}))"
        code = "\n".join(f"    {line}" for line in code.splitlines())
        code = (
            "import sys\nfrom hf_latent.errors import UserError\ntry:\n"
            f"{code}\nexcept UserError as error:\n    print('error:', error, file=sys.stderr)"
        )
        outcome = process.run(code)
        assert "Traceback" not in outcome.err, outcome.err
        return json.loads(outcome.out) if outcome.out else outcome.err

    return run


def local_batches(cache, start: int = 0) -> dict:
    store = open_shard_store(str(cache))
    stream = LatentStream(store, 8, 3, True, start, lanes=2, buffer_rows=16)
    batches = list(islice(stream, BATCHES))
    return {
        "labels": [batch.conditions["class_labels"].tolist() for batch in batches],
        "sums": [batch.posteriors.mean.double().sum((1, 2, 3)).tolist() for batch in batches],
    }


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_stream_is_that_of_a_folder_with_few_shards_on_the_disk(read, cache, workers):
    found, expected = read(workers=workers), local_batches(cache)
    assert found["labels"] == expected["labels"]
    assert found["sums"] == expected["sums"]
    assert found["validation"] == 7
    # Two lanes, each with a window of two shards and the next one.
    assert 0 < max(found["shards"]) <= 2 * 2 * 2 < ROWS // SHARD_ROWS


def test_no_worker_removes_a_shard_that_another_reads(read, cache):
    # In several epochs the workers change their shards many times, at different times.
    found = read("batches=60", workers=2)
    assert len(found["labels"]) == 60
    assert max(found["shards"]) <= 8


def test_only_the_shards_of_the_windows_are_downloaded(read, hub):
    read("batches=1")
    names = {x.path.split("/")[-1] for x in hub.asked("GET .*resolve.*train-")}
    assert 2 <= len(names) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_process_removes_all_its_files_at_its_end(hub, tmp_path, temporary, workers):
    code = f"{READ}\nprint(json.dumps(read({str(temporary)!r}, 6, {workers})))"
    done = forked.run(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["validation"] == 7, "it read to the end"
    assert list(temporary.iterdir()) == []
    assert not list((tmp_path / "home").rglob("train-*"))


def a_train_shard(cache, window: int) -> str:
    stream = LatentStream(open_shard_store(str(cache)), 8, 3, True, lanes=2, buffer_rows=16)
    shard = next(islice(stream.windows(0), window, None)).shards[0]
    return f"train-{shard:06d}.safetensors"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_damaged_on_the_hub_is_named(read, hub, cache, workers):
    name = a_train_shard(cache, 1)
    content = bytearray((cache / name).read_bytes())
    content[-1] ^= 1
    hub.put("ada/latents", {name: bytes(content)})
    text = read(workers=workers)
    assert text.startswith("error: ")
    assert f"{name} of ada/latents does not match its manifest.json: push it again" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("how", [404, 403, 500, "drop"])
def test_a_failed_download_of_a_shard_is_one_line(read, hub, cache, how):
    name = a_train_shard(cache, 1)
    hub.fail(f".*resolve.*{name}", times=99, how=how)
    line = read().splitlines()[-1]  # the Hub's client prints a line for every attempt
    assert line.startswith(f"error: {name} of ada/latents cannot be downloaded (")
    assert line.endswith("resume from the last checkpoint when the Hub can be reached")


def test_a_cut_connection_is_retried(read, hub, cache):
    hub.fail(f"GET .*resolve.*{a_train_shard(cache, 1)}", how="cut")
    assert read()["labels"] == local_batches(cache)["labels"]


def test_a_push_while_reading_changes_nothing(read, hub, cache, tmp_path):
    write_latents(tmp_path / "other", ROWS, SHARD_ROWS, latent_shape=[9, 9, 9])
    pushed = {f"train-{n:06d}.safetensors": b"other" for n in range(10)}
    pushed |= {f"validation-{n:06d}.safetensors": b"other" for n in range(2)}
    # The reading process waits after its first batch until the Hub has another commit.
    before = f"""
def push():
    Path({str(tmp_path / "push")!r}).touch()
    while Path({str(tmp_path / "push")!r}).exists():
        pass
"""
    import threading

    def pusher():
        while not (tmp_path / "push").exists():
            pass
        hub.put("ada/latents", pushed)
        (tmp_path / "push").unlink()

    thread = threading.Thread(target=pusher, daemon=True)
    thread.start()
    found = read("after_first=push", before=before)
    thread.join(10)
    assert found["labels"] == local_batches(cache)["labels"]
    assert found["validation"] == 7
    assert "does not match its manifest.json" in read()


def test_a_revision_can_be_named(read, hub, cache):
    revision = hub.repos["datasets", "ada/latents"].refs["main"]
    hub.put("ada/latents", {"manifest.json": b"{}"})
    assert "manifest.json is damaged" in read()
    assert read(f"revision={revision!r}")["labels"] == local_batches(cache)["labels"]


def test_a_repository_without_a_finished_cache_is_refused(read, hub, cache):
    manifest = json.loads((cache / "manifest.json").read_text())
    hub.put("ada/latents", {"manifest.json": json.dumps(manifest | {"shards": {}}).encode()})
    assert read() == "error: ada/latents is not finished: encode all of it, and push it again\n"
    hub.clear()
    text = read()
    assert "there is no folder ada/latents, and the Hub does not give a latent cache" in text


def test_a_cache_is_downloaded_whole_if_it_is_not_streamed(process, hub, cache):
    code = """
from hf_latent.data.latents.cache import LatentCache
import torch
cache = LatentCache("ada/latents")
cache.verify()
print(cache.train.read(torch.arange(40)).conditions["class_labels"].tolist() == list(range(40)))
"""
    outcome = process.run(code)
    assert outcome.out == "True\n", outcome.err
    assert torch.arange(40).tolist() == list(range(40))
