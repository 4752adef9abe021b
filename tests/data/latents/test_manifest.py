import hashlib
from dataclasses import replace

import pytest
import torch

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.latents.manifest import (
    IDENTITY,
    check_fits,
    check_same,
    choose_shard_rows,
    images_manifest,
    read_manifest,
    split_manifest,
    split_ranges,
)
from hf_latent.data.shards import write_manifest
from hf_latent.errors import UserError
from tests.data.latent_caches import read_json, write_latents

AUTOENCODER = "a5" * 32
CONFIG = {"resolution": "24,16", "resize_mode": "pad"}


@pytest.fixture
def folder(tmp_path):
    write_latents(tmp_path / "cache")
    return tmp_path / "cache"


def user_error(action) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("rows", "row_bytes", "batch_size", "expected"),
    [
        (1, 100, 64, 64),
        (10, 4096, 4, 4),
        (1024, 4096, 64, 64),
        (1025, 4096, 64, 128),  # 65 in each of 16 shards, in whole batches
        (13_000, 4096, 64, 832),
        (10**6, 4096, 64, 2**25 // 4096),
        (10**6, 4096, 100, 8200),
        (10**6, 2**26, 64, 64),  # a batch at least
        (10**6, 2**26, 1, 1),
    ],
)
def test_shards_hold_whole_batches_and_there_are_16_or_they_are_32_mb(
    rows, row_bytes, batch_size, expected
):
    assert choose_shard_rows(rows, row_bytes, batch_size) == expected


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(0, 5, []), (4, 5, [4]), (5, 5, [5]), (11, 5, [5, 5, 1]), (3, 1, [1, 1, 1])],
)
def test_the_shards_of_a_split_have_all_its_rows(rows, size, expected):
    manifest = {"splits": {"train": {"rows": rows}}, "shard_rows": size}
    found = split_ranges(manifest, "train")
    assert [len(rows) for rows in found.values()] == expected
    assert [row for rows in found.values() for row in rows] == list(range(rows))
    assert list(found) == [f"train-{n:06d}.safetensors" for n in range(len(expected))]


def test_a_manifest_is_read_as_it_was_written(folder):
    assert read_manifest(folder / "manifest.json") == read_json(folder)


def test_a_manifest_of_before_has_no_captions(folder):
    manifest = read_json(folder)
    del manifest["captions"]
    write_manifest(folder, manifest)
    assert read_manifest(folder / "manifest.json")["captions"] is None


def change(manifest: dict, *path: str, to) -> None:
    for key in path[:-1]:
        manifest = manifest[key]
    manifest[path[-1]] = to


SHARD = "train-000001.safetensors"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "hf_latent latents 9"),
        (("shards", SHARD, "sha256"), "0"),
        (("shards", SHARD, "sha256"), 7),
        (("shards", SHARD, "bytes"), -1),
        (("shards", SHARD, "bytes"), None),
        (("shards",), {"../train-000000.safetensors": {"bytes": 1, "sha256": "ab" * 32}}),
        (("shards",), [1]),
        (("splits",), {"train": {"rows": 3}}),
        (("splits", "train", "rows"), 99),
        (("splits", "train", "rows"), -1),
        (("splits", "train", "rows"), "many"),
        (("shard_rows",), 0),
        (("shard_rows",), None),
        (("splits", "train", "rows"), 10**12),
        (("splits", "validation", "rows"), 0),
        (("splits", "validation", "fingerprint"), None),
        (("shards", SHARD, "bytes"), "12"),
        (("image_shape",), None),
        (("image_shape",), [24, 16]),
        (("latent_shape",), [2, 3, "2"]),
        (("preprocessing",), 7),
        (("dtype",), "float64"),
        (("id2label",), {"one": "cat"}),
        (("captions",), {"texts": ["", 7], "alternatives": 1}),
        (("captions",), {"texts": ["a"], "alternatives": 1}),
        (("captions",), {"texts": [""], "alternatives": 0}),
    ],
)
def test_an_impossible_manifest_is_refused_in_one_line(folder, path, value):
    manifest = read_json(folder)
    change(manifest, *path, to=value)
    write_manifest(folder, manifest)
    text = user_error(lambda: read_manifest(folder / "manifest.json"))
    assert text.startswith(f"{folder}/manifest.json is damaged (")
    assert text.endswith("encode again")


@pytest.mark.parametrize("key", sorted(IDENTITY.keys() - {"captions"}))
def test_a_manifest_without_a_key_is_refused(folder, key):
    manifest = read_json(folder)
    del manifest[key]
    write_manifest(folder, manifest)
    assert "manifest.json is damaged" in user_error(lambda: read_manifest(folder / "manifest.json"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\udce9"])
def test_another_file_is_refused_in_one_line(folder, content):
    (folder / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "manifest.json is damaged" in user_error(lambda: read_manifest(folder / "manifest.json"))


OTHERS = {
    "autoencoder_sha256": ("ff" * 32, "autoencoder (a5a5a5a5a5a5, not ffffffffffff)"),
    "image_shape": ([3, 24, 16], "resolution or number of channels ([1, 24, 16], not [3, 24, 16])"),
    "preprocessing": ("crop to 8x8", "preprocessing (pad to 24x16, 1 channels, not crop to 8x8)"),
    "mirrored": (False, "--horizontal_flip (True, not False)"),
    "latent_shape": ([4, 3, 2], "latent shape ([2, 3, 2], not [4, 3, 2])"),
    "dtype": ("float16", "dtype (float32, not float16)"),
    "encode_batch_size": (64, "--encode_batch_size (5, not 64)"),
    "shard_rows": (9, "--shard_rows (5, not 9)"),
    "id2label": ({0: "other"}, "set of classes (other names, numbers or contents)"),
    "captions": ({"texts": [""], "alternatives": 1}, "set of captions (other names, numbers or"),
    "splits": ({"train": {}}, "set of images (other names, numbers or contents)"),
    "format": ("hf_latent latents 9", "version of hf_latent"),
}


def test_the_same_cache_is_accepted(folder):
    manifest = read_json(folder)
    # Before it is written as JSON, a manifest has numbers as keys, and tuples.
    names = {int(label): name for label, name in manifest["id2label"].items()}
    wanted = manifest | {"id2label": names, "image_shape": (1, 24, 16), "data": None}
    check_same(folder, manifest, wanted)


@pytest.mark.parametrize("key", IDENTITY)
def test_another_cache_is_refused_and_the_difference_is_named(folder, key):
    manifest = read_json(folder)
    value, what = OTHERS[key]
    text = user_error(lambda: check_same(folder, manifest, manifest | {key: value}))
    assert text.startswith(f"{folder}/manifest.json has another {what}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 1},
        {"validation_fingerprint": "0123456789abcdef"},
        {"horizontal_flip": True},
        {"seed": 7, "data": "elsewhere"},
    ],
)
def test_a_cache_fits_a_training_with_its_settings(folder, changes):
    config = ImagesConfig(**CONFIG | changes)
    check_fits("cache", read_json(folder), config, AUTOENCODER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 24}, "another resolution (24x16, the run's --resolution is 24): pass"),
        ({"resolution": "16,24"}, "pass --resolution 24,16, or encode again"),
        ({"channels": 3}, "another number of channels (1, the run's is 3): leave out --channels"),
        ({"resize_mode": "crop"}, "another preprocessing (pad, the run's --resize_mode is crop)"),
        (
            {"value_range": "0,4095"},
            "another preprocessing (default values, the run's is values 0 to 4095): pass",
        ),
        ({"color_profile": "ignore"}, "(default values, the run's is colour profiles ignored)"),
        (
            {"validation_fingerprint": "f" * 16},
            "another set of held-out images (fingerprint 0123456789abcdef, not ffffffffffffffff)",
        ),
    ],
)
def test_a_training_with_other_settings_is_refused(folder, changes, message):
    config = ImagesConfig(**CONFIG | changes)
    text = user_error(lambda: check_fits("where it is", read_json(folder), config, AUTOENCODER))
    assert text.startswith("where it is: manifest.json has")
    assert message in text


def test_flips_need_a_cache_with_mirror_images(tmp_path):
    write_latents(tmp_path / "cache", mirrored=False)
    manifest = read_json(tmp_path / "cache")
    check_fits("cache", manifest, ImagesConfig(**CONFIG), AUTOENCODER)
    config = ImagesConfig(**CONFIG, horizontal_flip=True)
    text = user_error(lambda: check_fits("cache", manifest, config, AUTOENCODER))
    assert "has no mirror images" in text


@pytest.mark.parametrize(("name", "shown"), [("ada/ae", "ada/ae"), (None, "a local one")])
def test_a_cache_of_another_autoencoder_is_refused_by_name(folder, name, shown):
    manifest = read_json(folder) | {"autoencoder": name}
    text = user_error(lambda: check_fits("cache", manifest, ImagesConfig(**CONFIG), "ff" * 32))
    assert f"another autoencoder ({shown}, a5a5a5a5a5a5, not ffffffffffff)" in text


def test_a_split_is_identified_by_images_order_and_labels():
    train = open_images(ImagesConfig(resize_mode="pad", max_train_samples=20)).train
    expected = split_manifest(train)
    assert expected == {
        "rows": 20,
        "images_sha256": train.identity,
        "fingerprint": train.fingerprint,
        "labels_sha256": hashlib.sha256(train.labels.numpy().tobytes()).hexdigest(),
    }
    other = train.subset(torch.arange(19, -1, -1).numpy())
    differ = {key for key, value in split_manifest(other).items() if value != expected[key]}
    assert differ == {"images_sha256", "labels_sha256"}


def test_random_flips_and_crops_do_not_change_the_manifest():
    plain = images_manifest(open_images(ImagesConfig(max_train_samples=20)))
    config = ImagesConfig(max_train_samples=20, horizontal_flip=True, crop="random")
    assert images_manifest(open_images(config)) == plain
    assert plain["image_shape"] == [1, 32, 32]
    assert plain["preprocessing"] == "crop to 32x32, 1 channels"
    assert plain["id2label"]["9"] == "Ankle boot"


def test_the_held_out_fingerprint_is_that_of_all_held_out_images():
    splits = open_images(ImagesConfig(max_train_samples=20))
    some = replace(splits, validation=splits.validation.evenly_spaced(5))
    found = images_manifest(some)["splits"]["validation"]
    assert found["rows"] == 5
    assert found["images_sha256"] == some.validation.identity
    assert found["fingerprint"] == splits.validation_fingerprint != some.validation.fingerprint
