import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_latent.command import run_command
from hf_latent.data.images.open import open_images
from hf_latent.data.latents.cache import LatentBatch, LatentCache
from hf_latent.data.shards import write_manifest, write_shard
from hf_latent.errors import UserError
from hf_latent.models.frozen import hash_autoencoder
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.latents import encode as latents
from hf_latent.training.latents import posteriors
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from tests.conftest import make_autoencoder
from tests.data.latent_caches import all_bytes, assert_same_batch, cut_short, flip_a_bit, read_json
from tests.training.encoding import as_flags, encode_settings, save_autoencoder

SHARDS = [f"train-{n:06d}.safetensors" for n in range(4)]
SHARDS += [f"validation-{n:06d}.safetensors" for n in range(2)]


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "model")


@pytest.fixture(scope="module")
def whole(vae_folder, tmp_path_factory):
    """An uninterrupted cache: its configuration and the bytes of its files."""
    config = encode_settings(vae_folder, tmp_path_factory.mktemp("whole") / "cache")
    encode_latents(config)
    return config, all_bytes(Path(config.output_dir))


@pytest.fixture
def cache(whole, tmp_path):
    """The configuration of a copy of that cache, for tests that change it."""
    shutil.copytree(whole[0].output_dir, tmp_path / "cache")
    return replace(whole[0], output_dir=str(tmp_path / "cache"))


@pytest.fixture
def written(monkeypatch):
    """The names of the files that the test's encoding writes."""
    names: list[str] = []
    write_shard = latents.write_shard

    def spy(path, tensors):
        names.append(path.name)
        return write_shard(path, tensors)

    monkeypatch.setattr(latents, "write_shard", spy)
    return names


def encode(config, **changes) -> LatentCache:
    return encode_latents(replace(config, **changes))[0]


def user_error(action) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_views_are_the_latents_of_the_image_and_of_its_mirror_image(whole, vae_folder):
    config, _ = whole
    cache, splits = LatentCache(config.output_dir), open_images(config)
    images, vae = splits.train.view(False).read(), load_autoencoder(vae_folder)
    rows = torch.arange(40)
    with torch.no_grad():
        encoded = [encode_posteriors(vae, x) for x in (images, images.flip(3))]
    for view, expected in enumerate(encoded):
        found = cache.train.read(rows, torch.full((40,), bool(view)))
        labels = {"class_labels": splits.train.labels}
        assert_same_batch(found, LatentBatch(expected, labels), tolerance=1e-5)
    plain = cache.train.read(rows).posteriors
    # A mirrored latent is not the latent of the mirrored image.
    assert ((encoded[1].mean - plain.mean.flip(3)).abs().amax((1, 2, 3)) > 1e-3).all()
    held_out = splits.validation.evenly_spaced(12)
    with torch.no_grad():
        encoded_held_out = encode_posteriors(vae, held_out.read())
    expected = LatentBatch(encoded_held_out, {"class_labels": held_out.labels})
    assert_same_batch(cache.validation.read(torch.arange(12)), expected, tolerance=1e-5)


def test_a_shard_has_the_documented_tensors(whole):
    config, content = whole
    assert sorted(content) == ["manifest.json", *SHARDS]
    for name, rows in zip(SHARDS, (10, 10, 10, 10, 10, 2), strict=True):
        tensors = load_file(Path(config.output_dir) / name)
        views = 2 if name.startswith("train") else 1
        found = {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}
        assert found == {
            "mean": ((rows, views, 4, 8, 8), torch.float32),
            "std": ((rows, views, 4, 8, 8), torch.float32),
            "class_labels": ((rows,), torch.int64),
        }


def test_the_manifest_says_what_was_encoded_and_how(whole, vae_folder):
    config, _ = whole
    manifest, splits = read_json(Path(config.output_dir)), open_images(config)
    assert vae_folder not in json.dumps(manifest), "a path means nothing elsewhere"
    wanted = {
        "format": "hf_latent latents 1",
        "autoencoder": None,
        "autoencoder_sha256": hash_autoencoder(load_autoencoder(vae_folder)),
        "data": "fashion_mnist",
        "image_shape": [1, 32, 32],
        "preprocessing": "pad to 32x32, 1 channels",
        "latent_shape": [4, 8, 8],
        "mirrored": True,
        "dtype": "float32",
        "shard_rows": 10,
        "encode_batch_size": 4,
    }
    assert {key: manifest[key] for key in wanted} == wanted
    assert list(manifest["shards"]) == SHARDS
    assert [shard["rows"] for shard in manifest["shards"].values()] == [10, 10, 10, 10, 10, 2]
    assert set(manifest["shards"][SHARDS[0]]) == {"rows", "bytes", "sha256"}
    assert manifest["splits"]["train"]["images_sha256"] == splits.train.view(False).identity
    assert manifest["splits"]["validation"]["fingerprint"] == splits.validation_fingerprint
    LatentCache(config.output_dir).verify()


def test_the_statistics_are_those_of_posterior_samples(whole):
    config, _ = whole
    shards = [load_file(Path(config.output_dir) / name) for name in SHARDS[:4]]
    mean, std = (torch.cat([x[name] for x in shards]).double() for name in ("mean", "std"))
    axes = (0, 1, 3, 4)
    expected_std = (mean.var(axes, correction=0) + std.square().mean(axes)).sqrt()
    manifest = read_json(Path(config.output_dir))
    for name, expected in (("latents_mean", mean.mean(axes)), ("latents_std", expected_std)):
        found = torch.tensor(manifest[name], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert all(float(f"{x:.7g}") == x for x in manifest[name])


def test_a_batch_never_spans_two_files(cache, monkeypatch):
    sizes = []

    def spy(vae, images):
        sizes.append(len(images))
        return encode_posteriors(vae, images)

    monkeypatch.setattr(posteriors, "encode_posteriors", spy)
    shutil.rmtree(cache.output_dir)
    encode(cache)
    assert sizes == [4, 4, 4, 4, 2, 2] * 4 + [4, 4, 2] + [2]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_reading_processes(whole, tmp_path, workers):
    config, content = whole
    encode(config, output_dir=str(tmp_path / "cache"), dataloader_num_workers=workers)
    assert all_bytes(tmp_path / "cache") == content


def test_the_bytes_do_not_depend_on_the_read_ahead(whole, tmp_path, monkeypatch):
    config, _ = whole
    encode(config, output_dir=str(tmp_path / "one"), shard_rows=5)  # a piece a file
    monkeypatch.setattr(latents, "READ_AHEAD_BYTES", 1)
    encode(config, output_dir=str(tmp_path / "two"), shard_rows=5)  # of 4 images and of 1
    assert all_bytes(tmp_path / "two") == all_bytes(tmp_path / "one")


def test_float16_is_rounded_float32(whole, tmp_path):
    config, _ = whole
    encode(config, output_dir=str(tmp_path / "half"), dtype="float16")
    for name in SHARDS:
        half = load_file(tmp_path / "half" / name)
        for key, exact in load_file(Path(config.output_dir) / name).items():
            assert torch.equal(half[key], exact if key == "class_labels" else exact.half())


def test_without_flips_there_is_one_view(whole, tmp_path):
    config, _ = whole
    cache = encode(config, output_dir=str(tmp_path / "plain"), horizontal_flip=False)
    assert not cache.manifest["mirrored"]
    assert load_file(tmp_path / "plain" / SHARDS[0])["mean"].shape == (10, 1, 4, 8, 8)
    rows = torch.arange(40)
    both = LatentCache(config.output_dir).train.read(rows)
    assert torch.equal(cache.train.read(rows).posteriors.mean, both.posteriors.mean)


@pytest.fixture
def pictures(tmp_path):
    """24 images without classes."""
    (tmp_path / "pictures").mkdir()
    for n in range(24):
        pixels = torch.randint(256, (32, 32), generator=torch.Generator().manual_seed(n))
        Image.fromarray(pixels.byte().numpy()).save(tmp_path / "pictures" / f"{n:02d}.png")
    return str(tmp_path / "pictures")


def test_all_held_out_images_are_encoded_by_default(whole, tmp_path, pictures):
    changes = {"data": pictures, "validation_fraction": 0.4, "max_train_samples": None}
    config = replace(whole[0], **changes)
    held_out = open_images(config).validation
    every = encode(config, output_dir=str(tmp_path / "all"), max_validation_samples=None)
    assert len(every.validation) == len(held_out) > 4
    assert len(every.train) + len(every.validation) == 24
    some = encode(config, output_dir=str(tmp_path / "some"), max_validation_samples=3)
    chosen = torch.arange(3) * len(held_out) // 3
    found, expected = some.validation.read(torch.arange(3)), every.validation.read(chosen)
    assert_same_batch(found, expected, tolerance=1e-5)
    # Without classes there are no conditions. A path is not in the manifest.
    assert found.conditions == {}
    assert every.manifest["id2label"] is None
    assert every.manifest["data"] is None
    assert set(load_file(tmp_path / "all" / SHARDS[0])) == {"mean", "std"}


def test_random_crops_are_refused(whole):
    assert "--crop random does not go" in user_error(lambda: replace(whole[0], crop="random"))


def test_the_size_of_files_follows_the_data_by_default(whole, tmp_path):
    cache = encode(whole[0], output_dir=str(tmp_path / "cache"), shard_rows=None)
    assert cache.manifest["shard_rows"] == 4  # 40 images in 16 files are 3, in whole batches


def test_a_complete_cache_is_not_changed(cache, whole, written, monkeypatch):
    monkeypatch.setattr(posteriors, "encode_posteriors", None)
    before = times(Path(cache.output_dir))
    encode(cache)
    assert written == []
    del before["manifest.json"]
    assert before.items() <= times(Path(cache.output_dir)).items()
    assert all_bytes(Path(cache.output_dir)) == whole[1]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, os.remove])
@pytest.mark.parametrize("name", [SHARDS[0], SHARDS[2], SHARDS[5]])
def test_encoding_again_replaces_only_the_damaged_file(cache, whole, written, damage, name):
    folder = Path(cache.output_dir)
    before = times(folder)
    damage(folder / name)
    text = user_error(lambda: LatentCache(folder).verify())
    assert str(folder / name) in text
    kept = {x: content for x, content in all_bytes(folder).items() if x != name}
    assert kept == {x: content for x, content in whole[1].items() if x != name}
    encode(cache)
    assert written == [name]
    assert all_bytes(folder) == whole[1]
    after = times(folder)
    assert [x for x in SHARDS if after[x] != before[x]] == [name]


def begin(folder: Path) -> None:
    """Turn a complete cache into a started one."""
    manifest = read_json(folder)
    for name in manifest["shards"]:
        write_shard(folder / name, load_file(folder / name))
    for name in ("shards", "latents_mean", "latents_std"):
        del manifest[name]
    write_manifest(folder, manifest)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6])
def test_a_started_cache_is_continued(cache, whole, written, count):
    folder = Path(cache.output_dir)
    begin(folder)
    for name in SHARDS[count:]:
        (folder / name).unlink()
    encode(cache)
    assert written == SHARDS[count:]
    assert all_bytes(folder) == whole[1]


def test_half_written_files_of_a_killed_process_are_encoded_again(cache, whole, written):
    folder = Path(cache.output_dir)
    begin(folder)
    cut_short(folder / SHARDS[1], 2000)
    (folder / SHARDS[4]).write_bytes(b"")
    (folder / SHARDS[3]).rename(folder / f".{Path(SHARDS[3]).stem}.tmp.safetensors")
    (folder / ".manifest.tmp.json").write_text("{")
    (folder / ".train-000001.entry.tmp.json").write_text("{")
    encode(cache)
    assert sorted(written) == [SHARDS[1], SHARDS[3], SHARDS[4]]
    assert all_bytes(folder) == whole[1]


def test_a_flipped_bit_in_a_started_cache_is_found(cache, whole, written):
    folder = Path(cache.output_dir)
    begin(folder)
    flip_a_bit(folder / SHARDS[2])
    encode(cache)
    assert written == [SHARDS[2]]
    assert all_bytes(folder) == whole[1]


def test_a_half_written_manifest_is_replaced(whole, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".manifest.tmp.json").write_text("{")
    encode(whole[0], output_dir=str(tmp_path / "cache"))
    assert all_bytes(tmp_path / "cache") == whole[1]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"max_train_samples": 39}, "set of images"),
        ({"max_validation_samples": 11}, "set of images"),
        ({"seed": 5}, "set of images"),
        ({"horizontal_flip": False}, "--horizontal_flip"),
        ({"resize_mode": "crop"}, "preprocessing"),
        ({"resolution": 40}, "resolution or number of channels"),
        ({"dtype": "float16"}, "dtype"),
        ({"encode_batch_size": 5}, "--encode_batch_size"),
        ({"shard_rows": 20}, "--shard_rows"),
    ],
)
def test_a_cache_of_other_settings_is_refused_and_kept(cache, whole, written, changes, what):
    text = user_error(lambda: encode(cache, **changes))
    assert text.startswith(f"{cache.output_dir}/manifest.json has another {what} (")
    assert written == []
    assert all_bytes(Path(cache.output_dir)) == whole[1]


@pytest.mark.parametrize("change", [{"scaling_factor": 0.5}, {"latents_mean": [0.0] * 4}])
def test_a_cache_of_the_same_weights_on_another_scale_is_refused(cache, tmp_path, change):
    other = save_autoencoder(tmp_path / "other", **change)
    text = user_error(lambda: encode(cache, vae=other))
    assert f"{cache.output_dir}/manifest.json has another autoencoder (" in text


def test_a_cache_of_other_settings_is_replaced_on_request(cache, whole, tmp_path):
    other = replace(cache, max_train_samples=7, shard_rows=4)
    fresh = replace(other, output_dir=str(tmp_path / "fresh"))
    encode_latents(other, replace_other=True)
    encode_latents(fresh)
    assert all_bytes(tmp_path / "cache") == all_bytes(tmp_path / "fresh")
    # The same cache is not replaced.
    before = times(tmp_path / "cache")
    encode_latents(other, replace_other=True)
    del before["manifest.json"]
    assert before.items() <= times(tmp_path / "cache").items()


def test_a_folder_with_other_files_is_refused_and_kept(whole, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("notes.txt", ".weights.safetensors", ".train-000000.1.safetensors.txt"):
        (tmp_path / "mine" / name).write_text("mine")
    before = all_bytes(tmp_path / "mine")
    config = replace(whole[0], output_dir=str(tmp_path / "mine"))
    assert "has something else in it" in user_error(lambda: encode_latents(config))
    assert "has something else in it" in user_error(
        lambda: encode_latents(config, replace_other=True)
    )
    assert all_bytes(tmp_path / "mine") == before
    (tmp_path / "file").write_text("mine")
    text = user_error(lambda: encode(whole[0], output_dir=str(tmp_path / "file")))
    assert "cannot be written" in text
    text = user_error(lambda: encode(whole[0], output_dir=str(tmp_path / "file" / "cache")))
    assert "cannot be written" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "/nowhere/model"}, "no autoencoder found at /nowhere/model"),
        ({"channels": 3}, "3 channels and the autoencoder takes 1"),
        ({"resolution": 34}, "multiples of"),
        ({"data": "/nowhere"}, "/nowhere"),
    ],
)
def test_failed_encoding_leaves_no_folder(whole, tmp_path, changes, message):
    assert message in user_error(
        lambda: encode(whole[0], output_dir=str(tmp_path / "cache"), **changes)
    )
    assert not (tmp_path / "cache").exists()


def test_a_user_error_of_the_command_is_one_line_and_status_2(cache, capsys):
    flags = as_flags(replace(cache, dtype="float16"))
    with pytest.raises(SystemExit) as stopped:
        run_command(EncodeConfig, encode_latents, flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {cache.output_dir}/manifest.json has another dtype (")


def test_the_command_writes_the_cache(whole, tmp_path):
    flags = as_flags(replace(whole[0], output_dir=str(tmp_path / "cache")))
    run_command(EncodeConfig, encode_latents, flags)
    assert all_bytes(tmp_path / "cache") == whole[1]


def test_the_autoencoder_is_frozen_and_unchanged(whole, tmp_path):
    vae = make_autoencoder(sample_size=32).train()
    before = hash_autoencoder(vae)
    config = replace(whole[0], output_dir=str(tmp_path / "cache"))
    encode_latents(config, open_images(config), vae)
    assert all_bytes(tmp_path / "cache") == whole[1]
    assert hash_autoencoder(vae) == before
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
