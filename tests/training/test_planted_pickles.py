"""Pickles planted in a checkpoint and in a latent cache: refused or ignored, never loaded."""

import pytest
import torch

from hf_latent.data.latents.cache import LatentCache
from hf_latent.data.shards import hash_file, write_manifest
from hf_latent.errors import UserError
from hf_latent.training.autoencoder_config import AutoencoderConfig
from tests.data.latent_caches import read_json, write_latents
from tests.marking_pickle import MarkingPickle
from tests.training.run.test_checkpoints import assert_equal, resume, save, spoil, start, train

BESIDE = ("pytorch_model.bin", "optimizer.bin", "random_states_0.pkl", "scheduler.bin", "state.pt")
SHARD = "train-000001.safetensors"


@pytest.fixture
def planted(tmp_path):
    planted = MarkingPickle(tmp_path / "mark")
    yield planted
    planted.assert_never_loaded()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of one step, its training, and the settings that resume it."""
    config = AutoencoderConfig(output_dir=str(tmp_path / "run"), resume_from_checkpoint="latest")
    (tmp_path / "run").mkdir()
    state = train(start(config), 1)
    save(config, state, 1)
    return tmp_path / "run" / "checkpoint-1", state, config


def test_pickles_in_a_checkpoint_are_ignored(checkpoint, planted):
    folder, state, config = checkpoint
    for name in BESIDE:
        planted.write(folder / name)
        planted.write(folder / "vae" / name)
    planted.write(folder / "vae" / "diffusion_pytorch_model.bin")
    loaded = spoil(start(config))
    resume(config, loaded)
    assert_equal(loaded, state)


@pytest.mark.parametrize(
    "name",
    [
        "state.json",
        "vae_optimizer.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "vae_ema/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_pickle_in_place_of_a_checkpoint_file_is_refused(checkpoint, planted, name):
    folder, _, config = checkpoint
    planted.write(folder / name)
    config = AutoencoderConfig(output_dir=config.output_dir, resume_from_checkpoint=str(folder))
    with pytest.raises(UserError, match=rf"{name} (is damaged|cannot be read)"):
        resume(config, start(config))


def test_pickles_in_a_latent_cache_are_ignored(tmp_path, planted):
    tensors = write_latents(tmp_path / "cache")
    for name in ("manifest.pkl", "train-000000.pt", "train-000099.bin", "cache.pkl"):
        planted.write(tmp_path / "cache" / name)
    cache = LatentCache(tmp_path / "cache")
    cache.verify()
    rows = torch.arange(len(cache.train))
    assert torch.equal(cache.train.read(rows).posteriors.mean, tensors["train"]["mean"][:, 0])


@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
@pytest.mark.parametrize("described", [True, False])
def test_a_pickle_in_place_of_a_cache_file_is_refused(tmp_path, planted, name, described):
    folder = tmp_path / "cache"
    write_latents(folder)
    planted.write(folder / name)
    if described and name == SHARD:  # whoever planted it wrote the manifest too
        manifest = read_json(folder)
        known = {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        manifest["shards"][name] |= known
        write_manifest(folder, manifest)
    with pytest.raises(UserError, match=name):
        cache = LatentCache(folder)
        cache.verify()
        cache.train.read(torch.arange(len(cache.train)), None)
