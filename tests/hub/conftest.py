"""A loopback Hub, a process for which it is the Hub, and a tiny latent cache."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_latent.hub.card.render import write_model_card
from hf_latent.hub.card.signature import is_unedited
from tests.hub.hub_process import HubProcess
from tests.hub.loopback_hub import LoopbackHub

TOKEN = "hf_RecognisableTokenOfAda0123456789"
SHARD_ROWS = 2


@pytest.fixture(scope="session")
def running_hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="session")
def running_process(running_hub, tmp_path_factory):
    home = tmp_path_factory.mktemp("hub_process")
    modules = ("hub.push", "training.autoencoder", "training.denoiser")
    imports = [f"hf_latent.{name}" for name in modules]
    return HubProcess(running_hub, home, [*imports, "tests.hub.compiled_cards"])


@pytest.fixture
def hub(running_hub):
    """An empty Hub with one user, ada."""
    running_hub.clear()
    running_hub.page_size = 1000
    running_hub.add_token(TOKEN, "ada")
    return running_hub


@pytest.fixture
def process(hub, running_process):
    return running_process


def write_cache(folder: Path, train_rows: int = 5, seed: int = 0, classes: bool = True) -> Path:
    """Write a whole latent cache of two splits, 2 rows per shard."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    shards, splits = {}, {}
    for split, rows in (("train", train_rows), ("validation", 2)):
        hashed = hashlib.sha256(f"{split}{seed}".encode()).hexdigest()
        splits[split] = {"rows": rows, "images_sha256": hashed, "fingerprint": hashed[:16]}
        for number, start in enumerate(range(0, rows, SHARD_ROWS)):
            n = min(SHARD_ROWS, rows - start)
            tensors = {
                "mean": torch.randn(n, 1, 4, 2, 2, generator=generator),
                "std": torch.rand(n, 1, 4, 2, 2, generator=generator),
            }
            if classes:
                tensors["class_labels"] = torch.arange(n) % 3
            path = folder / f"{split}-{number:06d}.safetensors"
            save_file(tensors, path)
            data = path.read_bytes()
            known = {"rows": n, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            shards[path.name] = known
    manifest = {
        "format": "hf_latent latents 1",
        "autoencoder": "fashion-mnist-f4",
        "autoencoder_sha256": "0123456789abcdef" * 4,
        "data": "fashion_mnist",
        "image_shape": [1, 8, 8],
        "latent_shape": [4, 2, 2],
        "preprocessing": "pad to 8x8, 1 channels",
        "mirrored": False,
        "dtype": "float32",
        "shard_rows": SHARD_ROWS,
        "encode_batch_size": 64,
        "id2label": {"0": "T-shirt/top", "1": "Trouser", "2": "Pullover"} if classes else None,
        "splits": splits,
        "latents_mean": [0.01, -0.02, 0.0, 0.125],
        "latents_std": [1.0, 0.99, 1.01, 1.0],
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "cache")


def pusher(process, what, folder, repo_id):
    """Return a function that pushes a folder and checks that no output shows the token."""

    def run(*flags, token=TOKEN, before="", folder=folder, repo_id=repo_id, **environment):
        arguments = ("push", what, folder, "--repo_id", repo_id, *flags)
        outcome = process.command(*arguments, token=token, before=before, **environment)
        assert TOKEN not in outcome.out + outcome.err
        assert "Traceback" not in outcome.err
        return outcome

    return run


@pytest.fixture
def push(process, cache):
    """Push the cache."""
    return pusher(process, "--cache", cache, "ada/latents")


@pytest.fixture
def model(pipeline, tmp_path):
    """The folder of a pipeline, as a training leaves it."""
    folder = tmp_path / "run" / "model"
    pipeline.save_pretrained(folder)
    write_model_card(folder)
    return folder


@pytest.fixture
def push_model(process, model):
    """Push the model."""
    return pusher(process, "--model", model, "ada/model")


def model_files(hub, rev="main", repo_id="ada/model"):
    """The files of a model on the Hub, by name."""
    found = hub.repos["models", repo_id].files(rev)
    return {path: blob.data for path, blob in found.items() if path != ".gitattributes"}


def folder_files(folder):
    """All files of a folder, by their names in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_model_is_whole(sent, folder):
    """Check that the files of a model and a new card were sent, and nothing else."""
    kept = folder_files(folder)
    kept.pop("README.md", None)
    card = sent.pop("README.md").decode()
    assert sent == kept
    assert is_unedited(card)
    assert re.search(r'from_pretrained\(\s*"ada/model"', card)
