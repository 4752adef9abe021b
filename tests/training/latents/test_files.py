import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from hf_latent.data.latents.manifest import hash_file
from hf_latent.data.latents.shards import write_shard
from hf_latent.errors import UserError
from hf_latent.models.fold import measure_latents
from hf_latent.training.latents import files as latent_files
from hf_latent.training.latents.files import (
    Work,
    describe_file,
    finish_manifest,
    list_work,
    read_entry,
    start_folder,
    write_file,
)
from tests.data.latent_caches import cut_short, flip_a_bit, read_json, write_latents

NAME = "train-000001.safetensors"


@pytest.fixture
def folder(tmp_path):
    write_latents(tmp_path / "cache", rows=12, shard_rows=5)
    return tmp_path / "cache"


def begun(folder) -> dict:
    manifest = read_json(folder)
    del manifest["shards"]
    return manifest


def test_the_work_is_every_file_with_its_rows_in_order(folder):
    work = list_work(read_json(folder))
    assert work == [
        Work("train-000000.safetensors", "train", range(0, 5)),
        Work("train-000001.safetensors", "train", range(5, 10)),
        Work("train-000002.safetensors", "train", range(10, 12)),
        Work("validation-000000.safetensors", "validation", range(0, 5)),
        Work("validation-000001.safetensors", "validation", range(5, 7)),
    ]


def test_a_file_of_a_finished_cache_is_whole_if_its_hash_is_that_of_the_manifest(folder):
    recorded = read_json(folder)["shards"]
    for name, entry in recorded.items():
        assert read_entry(folder, recorded, name).items() >= entry.items()
    flip_a_bit(folder / NAME)
    assert read_entry(folder, recorded, NAME) is None


def test_a_file_of_an_unfinished_cache_is_whole_if_its_hash_is_that_of_its_entry(folder):
    tensors = load_file(folder / NAME)
    (folder / NAME).unlink()
    assert read_entry(folder, {}, NAME) is None
    entry = write_file(folder, NAME, tensors)
    assert read_entry(folder, {}, NAME) == entry == describe_file(folder / NAME)
    for damage in (flip_a_bit, cut_short):
        write_file(folder, NAME, tensors)
        damage(folder / NAME)
        assert read_entry(folder, {}, NAME) is None


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sha256": 7}'])
def test_a_file_with_a_damaged_entry_or_none_is_made_again(folder, content):
    assert read_entry(folder, {}, NAME) is None
    write_file(folder, NAME, load_file(folder / NAME))
    (folder / NAME).with_name("train-000001.entry.json").write_text(content)
    assert read_entry(folder, {}, NAME) is None


def test_a_full_disk_at_the_manifest_is_one_line_that_names_it(folder, monkeypatch):
    def full(path, values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(latent_files, "write_json", full)
    shards = {NAME: describe_file(folder / NAME)}
    with pytest.raises(UserError) as error:
        finish_manifest(folder, begun(folder), shards)
    assert str(error.value).startswith(
        f"{folder}/manifest.json cannot be written (No space left on device): make room"
    )


def test_a_file_is_told_by_its_rows_length_hash_and_sums(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 3, 2, 4, 5, 6, generator=generator)
    write_shard(tmp_path / NAME, {"mean": mean, "std": std})
    found = describe_file(tmp_path / NAME)
    assert found["rows"] == 3
    assert found["bytes"] == (tmp_path / NAME).stat().st_size
    assert found["sha256"] == hash_file(tmp_path / NAME)
    sums = torch.tensor(found["sums"], dtype=torch.float64)
    axes = (0, 1, 3, 4)
    expected = [
        torch.full((4,), 3.0 * 2 * 5 * 6, dtype=torch.float64),
        mean.double().sum(axes),
        mean.double().square().sum(axes),
        std.double().square().sum(axes),
    ]
    torch.testing.assert_close(sums, torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_the_statistics_are_of_the_training_images_alone_in_7_digits(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shards, parts = {}, []
    for name in ("train-000000", "train-000001", "validation-000000"):
        sums = torch.rand(4, 2, generator=generator, dtype=torch.float64) + 1
        sums[2] += 9
        parts.append(sums)
        shards[name] = {"rows": 1, "bytes": 2, "sha256": "3", "sums": sums.tolist()}
    finish_manifest(tmp_path, {"format": "f"}, shards)
    written = json.loads((tmp_path / "manifest.json").read_text())
    expected = measure_latents(parts[0] + parts[1])
    assert written["latents_mean"] == [float(f"{x:.7g}") for x in expected.mean.tolist()]
    assert written["latents_std"] == [float(f"{x:.7g}") for x in expected.std.tolist()]
    kept = {"rows": 1, "bytes": 2, "sha256": "3"}
    assert written["shards"] == dict.fromkeys(shards, kept)
    assert list(written["shards"]) == list(shards)


def test_a_folder_begins_with_its_manifest(tmp_path):
    start_folder(tmp_path / "new" / "cache", {"format": "f"})
    assert read_json(tmp_path / "new" / "cache") == {"format": "f"}


def test_a_damaged_manifest_is_refused_or_replaced(folder):
    manifest = begun(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        start_folder(folder, manifest)
    start_folder(folder, manifest, replace_other=True)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert read_json(folder) == manifest


def test_killed_while_another_cache_is_removed_the_rest_is_removed_next(folder, monkeypatch):
    other = begun(folder) | {"dtype": "float16"}
    unlink, count = type(folder).unlink, [0]

    def killed(path, **arguments):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        unlink(path, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            start_folder(folder, other, replace_other=True)
    assert len(list(folder.iterdir())) == 4
    start_folder(folder, other, replace_other=True)
    assert read_json(folder) == other
    assert len(list(folder.iterdir())) == 1
