import errno
import hashlib
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hf_latent.data import shards
from hf_latent.data.shards import (
    Shards,
    find_shard,
    hash_file,
    write_manifest,
    write_shard,
    write_shards,
)
from hf_latent.errors import UserError

ROWS = 23
GENERATOR = torch.Generator().manual_seed(0)
NUMBERS = torch.randn(ROWS, 3, 2, generator=GENERATOR)
LABELS = torch.randint(10, (ROWS,), generator=GENERATOR)
PIXELS = torch.randint(256, (ROWS, 4), generator=GENERATOR, dtype=torch.uint8)
TENSORS = {"numbers": NUMBERS, "labels": LABELS, "pixels": PIXELS}


@pytest.fixture(autouse=True)
def five_rows_per_shard(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)


def make_rows(rows: range) -> dict[str, torch.Tensor]:
    return {name: tensor[rows.start : rows.stop] for name, tensor in TENSORS.items()}


def write(folder, make=make_rows, **arguments):
    return write_shards(folder, ROWS, make, {"seed": 0, "sizes": [1, 2]}, **arguments)


def assert_user_error(action, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("name", TENSORS)
def test_all_rows_are_read_as_written(tmp_path, name):
    written = write(tmp_path / "new" / "folder")
    assert len(written) == ROWS
    blocks = list(Shards(tmp_path / "new" / "folder", ROWS, 5).select(name))
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(blocks), TENSORS[name])
    assert all(block.dtype == TENSORS[name].dtype for block in blocks)


def test_a_folder_holds_one_file_per_shard_and_a_manifest(tmp_path):
    write(tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        *(f"{number:06d}.safetensors" for number in range(5)),
        "manifest.json",
    ]
    manifest = json.loads((tmp_path / "folder" / "manifest.json").read_text())
    written = manifest.pop("shards")
    assert manifest == {"rows": ROWS, "shard_rows": 5, "seed": 0, "sizes": [1, 2]}
    assert [shard["rows"] for shard in written.values()] == [5, 5, 5, 5, 3]
    for name, shard in written.items():
        assert shard["bytes"] == (tmp_path / "folder" / name).stat().st_size
        assert shard["sha256"] == hash_file(tmp_path / "folder" / name)


@pytest.mark.parametrize(
    "rows", [[22], [4, 5], [0, 22, 7, 7, 0], list(range(ROWS))[::-1], [9, 4, 14, 19, 21, 3, 5, 6]]
)
def test_rows_are_read_in_any_order_and_more_than_once(tmp_path, rows):
    written, wanted = write(tmp_path), torch.tensor(rows)
    for name, tensor in TENSORS.items():
        assert torch.equal(written.read(name, wanted), tensor[wanted])


def test_a_selection_yields_its_rows_in_its_order_each_time(tmp_path):
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:12]
    selection = write(tmp_path).select("numbers", rows)
    assert len(selection) == 12
    for _ in range(2):
        blocks = list(selection)
        assert [len(block) for block in blocks] == [5, 5, 2]
        assert torch.equal(torch.cat(blocks), NUMBERS[rows])


def test_changing_read_rows_does_not_change_the_files(tmp_path):
    written, rows = write(tmp_path), torch.arange(3)
    written.read("numbers", rows).zero_()
    assert torch.equal(written.read("numbers", rows), NUMBERS[:3])
    for block in written.select("numbers"):
        block.zero_()
    assert torch.equal(torch.cat(list(written.select("numbers"))), NUMBERS)


@pytest.mark.parametrize(("count", "size"), [(1, 23), (2, 11), (3, 7), (11, 2), (23, 1)])
def test_subsets_are_disjoint_and_of_equal_size(tmp_path, count, size):
    rows = torch.arange(ROWS).flip(0)
    subsets = write(tmp_path).select("numbers", rows).subsets(count)
    assert [len(subset) for subset in subsets] == [size] * count
    read = torch.cat([block for subset in subsets for block in subset])
    assert torch.equal(read, NUMBERS[rows[: count * size]])


def test_the_last_shard_may_be_full_or_not(tmp_path):
    for count in (1, 4, 5, 10):
        written = write_shards(tmp_path / str(count), count, make_rows, {})
        assert torch.equal(torch.cat(list(written.select("labels"))), LABELS[:count])
        assert len(list((tmp_path / str(count)).glob("*.safetensors"))) == -(-count // 5)


def test_progress_counts_existing_and_new_rows(tmp_path):
    for _ in range(2):
        counts = []
        write(tmp_path, on_rows=counts.append)
        assert counts == [5, 5, 5, 5, 3]


def test_a_finished_folder_is_not_made_again(tmp_path):
    write(tmp_path)

    def never(rows):
        raise AssertionError(f"{rows} exist")

    assert torch.equal(torch.cat(list(write(tmp_path, never).select("pixels"))), PIXELS)


def test_a_killed_run_resumes_with_the_missing_shards(tmp_path):
    def killed(rows):
        if rows.start == 15:
            raise KeyboardInterrupt
        return make_rows(rows)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, killed)
    (tmp_path / "000001.safetensors").unlink()
    made = []

    def make(rows):
        made.append(rows)
        return make_rows(rows)

    written = write(tmp_path, make)
    assert made == [range(5, 10), range(15, 20), range(20, 23)]
    assert torch.equal(torch.cat(list(written.select("numbers"))), NUMBERS)


def test_a_shard_is_never_half_written(tmp_path, monkeypatch):
    def stopped_while_writing(path, content):
        with open(path, "wb") as file:
            file.write(content[:30])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stopped_while_writing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("rows", "identity", "named"),
    [
        (ROWS, {"seed": 1, "sizes": [1, 2]}, "seed"),
        (ROWS, {"seed": 0, "sizes": [1, 3]}, "sizes"),
        (ROWS, {"seed": 0}, "sizes"),
        (ROWS, {"seed": 0, "sizes": [1, 2], "model": "other"}, "model"),
        (ROWS - 1, {"seed": 0, "sizes": [1, 2]}, "number of images"),
    ],
)
def test_shards_of_another_identity_are_refused_and_kept(tmp_path, rows, identity, named):
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert_user_error(
        lambda: write_shards(tmp_path, rows, make_rows, identity),
        f"{tmp_path} was made with another {named}: remove that folder",
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_shards_of_another_size_are_refused(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(shards, "SHARD_ROWS", 6)
    assert_user_error(lambda: write(tmp_path), "another shard_rows")


def test_tuples_in_an_identity_equal_lists(tmp_path):
    write(tmp_path)
    write_shards(tmp_path, ROWS, make_rows, {"seed": 0, "sizes": (1, 2)})


def cut_in_the_data(path):
    path.write_bytes(path.read_bytes()[:-10])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:5])


def overwrite(path):
    path.write_bytes(b"not a shard at all, but some text that is long enough")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut_in_the_data, cut_in_the_header, overwrite, remove])
def test_a_damaged_shard_is_named_in_one_line(tmp_path, damage):
    written = write(tmp_path)
    damage(tmp_path / "000002.safetensors")
    assert torch.equal(written.read("numbers", torch.arange(10)), NUMBERS[:10])
    assert_user_error(
        lambda: written.read("numbers", torch.tensor([3, 14])),
        str(tmp_path / "000002.safetensors"),
        "cannot be read",
        "remove it, and run again",
    )
    # Following the advice mends it.
    (tmp_path / "000002.safetensors").unlink(missing_ok=True)
    assert torch.equal(torch.cat(list(write(tmp_path).select("numbers"))), NUMBERS)


@pytest.mark.parametrize("damage", [cut_in_the_data, cut_in_the_header, overwrite, remove])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_made_again(tmp_path, damage, finished):
    def make(rows):
        made.append(rows.start)
        if rows.start == 20 and not finished and len(made) == 5:
            raise KeyboardInterrupt
        return make_rows(rows)

    made: list[int] = []
    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        write(tmp_path, make)
    damage(tmp_path / "000002.safetensors")
    made.clear()
    assert torch.equal(torch.cat(list(write(tmp_path, make).select("numbers"))), NUMBERS)
    assert made == ([10] if finished else [10, 20])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sha256": 7}'])
def test_a_shard_without_a_valid_entry_is_not_found(tmp_path, content):
    path = tmp_path / "000000.safetensors"
    entry = write_shard(path, TENSORS)
    assert find_shard(path) == find_shard(path, entry) == entry
    (tmp_path / "000000.entry.json").write_text(content)
    assert find_shard(path) is None
    (tmp_path / "000000.entry.json").unlink()
    assert find_shard(path) is None


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "17"])
def test_a_damaged_manifest_is_one_line(tmp_path, content):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    assert_user_error(
        lambda: write(tmp_path), f"{tmp_path} has no readable manifest.json: remove that folder"
    )


@pytest.mark.parametrize("content", ["{}", '{"rows": "many"}', '{"rows": null}'])
def test_another_manifest_is_refused(tmp_path, content):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    assert_user_error(
        lambda: write(tmp_path), f"{tmp_path} was made with another", "remove that folder"
    )


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"latents")
    assert hash_file(tmp_path / "file") == hashlib.sha256(b"latents").hexdigest()


def test_a_full_disk_is_one_line_that_names_the_manifest(tmp_path, monkeypatch):
    def full(path, text, encoding):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    assert_user_error(
        lambda: write_manifest(tmp_path, {"format": "f"}, {}),
        f"{tmp_path}/manifest.json cannot be written (No space left on device): make room",
    )
