import pickle
from itertools import count, islice
from threading import Thread, current_thread

import pytest
import torch
from safetensors.torch import load_file

from hf_latent.data.latents import cache as latents
from hf_latent.data.latents.cache import LatentBatch, LatentCache, LatentSplit, concatenate
from hf_latent.data.shards import write_manifest, write_shard
from hf_latent.errors import UserError
from hf_latent.pipeline.encode import LatentPosteriors
from tests.data.latent_caches import (
    SHAPE,
    VALIDATION_ROWS,
    all_bytes,
    assert_same_batch,
    cut_short,
    flip_a_bit,
    read_json,
    write_latents,
)

ROWS = 23
SHARDS = [f"train-{n:06d}.safetensors" for n in range(5)]
SHARDS += [f"validation-{n:06d}.safetensors" for n in range(2)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def assert_read(found: LatentBatch, tensors, indices, views) -> None:
    mean, std = found.posteriors.mean, found.posteriors.std
    assert mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean, tensors["mean"][indices, views].float())
    assert torch.equal(std, tensors["std"][indices, views].float())
    assert torch.equal(found.conditions["class_labels"], tensors["class_labels"][indices])


@pytest.mark.parametrize("names", [(), ("class_labels",), ("class_labels", "captions")])
def test_concatenate_inverts_rows(names):
    posteriors = LatentPosteriors(torch.randn(9, *SHAPE), torch.rand(9, *SHAPE))
    conditions = {"class_labels": torch.arange(9), "captions": torch.randn(9, 3, 2)}
    whole = LatentBatch(posteriors, {name: conditions[name] for name in names})
    parts = [whole.rows(0, 4), whole.rows(4, 5), whole.rows(5, 9)]
    assert [len(part) for part in parts] == [4, 1, 4]
    assert_same_batch(concatenate(parts).to(torch.device("cpu")), whole)


@pytest.mark.parametrize(
    "indices",
    [[0], [22], [4, 5], [22, 0, 7, 7, 0, 7], list(range(ROWS))[::-1], [19, 4, 14, 3, 21, 9, 4]],
)
def test_reading_is_indexing_in_any_order_and_view(folder, indices):
    train = write_latents(folder)["train"]
    split, indices = LatentCache(folder).train, torch.tensor(indices)
    generator = torch.Generator().manual_seed(len(indices))
    mirrored = torch.randint(2, indices.shape, generator=generator).bool()
    for flags in (mirrored, ~mirrored):
        assert_read(split.read(indices, flags), train, indices, flags.long())
    assert_read(split.read(indices), train, indices, torch.zeros_like(indices))


def test_a_cache_has_the_images_of_both_splits(folder):
    whole = write_latents(folder)
    cache = LatentCache(str(folder))
    assert (len(cache.train), len(cache.validation)) == (ROWS, VALIDATION_ROWS)
    assert cache.train.latent_shape == cache.validation.latent_shape == SHAPE
    rows = torch.arange(VALIDATION_ROWS)
    assert_read(cache.validation.read(rows), whole["validation"], rows, 0 * rows)


@pytest.mark.parametrize("ahead_bytes", [1, 400, 1500, 2**23])
@pytest.mark.parametrize("size", [1, 4, 23, 30])
@pytest.mark.parametrize("flips", [True, False])
def test_reading_ahead_yields_the_same_batches(folder, monkeypatch, ahead_bytes, size, flips):
    write_latents(folder)
    split = LatentCache(folder).train
    generator = torch.Generator().manual_seed(size)
    keys = []
    for _ in range(11):
        indices = torch.randint(ROWS, (size,), generator=generator)
        mirrored = torch.randint(2, (size,), generator=generator).bool() if flips else None
        keys.append((indices, mirrored))
    monkeypatch.setattr(latents, "READ_AHEAD_BYTES", ahead_bytes)
    batches = list(split.read_batches(iter(keys)))
    assert len(batches) == len(keys)
    for found, key in zip(batches, keys, strict=True):
        assert_same_batch(found, split.read(*key))


def test_reading_ahead_reads_several_batches_at_once(folder, monkeypatch):
    write_latents(folder)
    split, sizes = LatentCache(folder).train, []
    read = LatentSplit.read

    def spy(self, indices, mirrored=None):
        sizes.append(len(indices))
        return read(self, indices, mirrored)

    monkeypatch.setattr(LatentSplit, "read", spy)
    # 12 values of mean and 12 of deviation, 4 bytes each: 3 batches of 4 images and some.
    monkeypatch.setattr(latents, "READ_AHEAD_BYTES", 3 * 4 * 2 * 4 * 12 + 50)
    endless = ((torch.tensor([n % ROWS] * 4), None) for n in count())
    batches = list(islice(split.read_batches(endless), 7))
    assert [int(batch.conditions["class_labels"][0]) for batch in batches] == list(range(7))
    assert set(sizes) == {12} and len(sizes) in (3, 4)


def test_reading_ahead_leaves_the_training_its_threads(folder):
    write_latents(folder)
    seen = []

    def keys():  # the reading thread draws them
        for row in range(3):
            seen.append((current_thread().name, torch.get_num_threads()))
            yield torch.tensor([row]), None

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in LatentCache(folder).train.read_batches(keys()):
            assert torch.get_num_threads() == 3
        later = []
        thread = Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [("read_0", 1)] * 3 and later == [3]


def test_changing_read_latents_does_not_change_the_files(folder):
    train = write_latents(folder)["train"]
    split, rows = LatentCache(folder).train, torch.arange(3)
    found = split.read(rows)
    for tensor in (found.posteriors.mean, found.posteriors.std, *found.conditions.values()):
        tensor.zero_()
    assert_read(split.read(rows), train, rows, 0 * rows)


def test_half_precision_is_read_as_float32(folder):
    train = write_latents(folder, dtype=torch.float16)["train"]
    assert train["mean"].dtype == torch.float16
    rows = torch.tensor([3, 21, 9])
    assert_read(LatentCache(folder).train.read(rows), train, rows, 0 * rows)


def test_without_classes_there_are_no_labels(folder):
    write_latents(folder, classes=False)
    assert LatentCache(folder).train.read(torch.arange(3)).conditions == {}


def test_held_out_images_are_read_evenly_spaced(folder):
    write_latents(folder)
    split = LatentCache(folder).validation
    assert split.read_evenly(3).conditions["class_labels"].tolist() == [0, 2, 4]
    assert split.read_evenly(99).conditions["class_labels"].tolist() == list(range(7))


def test_a_pickled_cache_reads_the_same_and_holds_no_latents(folder):
    train = write_latents(folder)["train"]
    cache, rows = LatentCache(folder), torch.arange(ROWS)
    before = len(pickle.dumps(cache.train))
    cache.train.read(rows)
    content = pickle.dumps(cache.train)
    assert len(content) == before
    assert_read(pickle.loads(content).read(rows), train, rows, 0 * rows)


def test_a_closed_shard_is_opened_again(folder):
    train = write_latents(folder)["train"]
    split, rows = LatentCache(folder).train, torch.arange(ROWS)
    split.read(rows)
    (folder / SHARDS[1]).unlink()
    assert_read(split.read(rows), train, rows, 0 * rows)
    split.close(1)
    others = torch.tensor([4, 10])
    assert_read(split.read(others), train, others, 0 * others)
    with pytest.raises(UserError, match=SHARDS[1]):
        split.read(rows)


def test_any_reader_of_safetensors_reads_a_shard(folder):
    whole = write_latents(folder)
    found = load_file(folder / "train-000004.safetensors")
    assert found.keys() == {"mean", "std", "class_labels"}
    assert torch.equal(found["mean"], whole["train"]["mean"][20:])


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", SHARDS)
def test_opening_names_a_missing_shorter_or_longer_shard(folder, name):
    write_latents(folder)
    before = all_bytes(folder)
    cut_short(folder / name)
    with pytest.raises(UserError) as error:
        LatentCache(folder)
    size = len(before[name])
    text = one_line(error)
    assert f"{folder / name} is damaged: it has {size - 3:,} bytes, not {size:,}; " in text
    (folder / name).write_bytes(before[name] + b"abc")
    with pytest.raises(UserError) as error:
        LatentCache(folder)
    assert f"is damaged: it has {size + 3:,} bytes, not {size:,}; " in one_line(error)
    (folder / name).unlink()
    with pytest.raises(UserError) as error:
        LatentCache(folder)
    assert f"{folder / name} is missing: encode again with the same settings" in one_line(error)
    (folder / name).write_bytes(before[name])
    LatentCache(folder).verify()
    assert all_bytes(folder) == before


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("place", [0, 40, -1])
def test_verifying_names_a_shard_with_one_flipped_bit(folder, name, place):
    write_latents(folder)
    flip_a_bit(folder / name, place)
    with pytest.raises(UserError) as error:
        LatentCache(folder).verify()
    assert f"{folder / name} is damaged: its checksum" in one_line(error)


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_exactly_one_process_verifies_each_shard(folder, processes, monkeypatch):
    write_latents(folder)
    cache = LatentCache(folder)
    checked: list[str] = []
    monkeypatch.setattr(latents, "check_shard", lambda path, entry: checked.append(path.name))
    for index in range(processes):
        cache.verify(index, processes)
    assert sorted(checked) == SHARDS


def test_an_unfinished_cache_is_refused(folder):
    write_latents(folder)
    manifest = read_json(folder)
    for begun in ({k: v for k, v in manifest.items() if k != "shards"}, manifest | {"shards": {}}):
        write_manifest(folder, begun)
        with pytest.raises(UserError) as error:
            LatentCache(folder)
        assert f"{folder} is not finished: run the command" in one_line(error)


def test_another_name_than_a_folder_is_a_hub_id(tmp_path):
    with pytest.raises(UserError) as error:
        LatentCache("ada/latents")
    assert one_line(error).startswith("there is no folder ada/latents, and the Hub does not")
    with pytest.raises(UserError) as error:
        LatentCache(tmp_path / "nowhere" / "at" / "all")
    assert str(tmp_path / "nowhere") in one_line(error)


def test_a_folder_without_a_manifest_is_no_cache(tmp_path):
    with pytest.raises(UserError) as error:
        LatentCache(tmp_path)
    assert f"{tmp_path} is no latent cache: it has no manifest.json" in one_line(error)


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": torch.zeros(4, 2, 2, 3, 2), "std": torch.zeros(5, 2, 2, 3, 2)},
        {"mean": torch.zeros(5, 2, 2, 3, 2), "std": torch.zeros(5, 1, 2, 3, 2)},
        {"mean": torch.zeros(5, 2, 2, 2, 3), "std": torch.zeros(5, 2, 2, 3, 2)},
    ],
)
def test_a_shard_of_another_shape_than_in_its_manifest_is_refused(tmp_path, tensors):
    write_latents(tmp_path / "cache")
    path = tmp_path / "cache" / "train-000001.safetensors"
    manifest = read_json(tmp_path / "cache")
    manifest["shards"][path.name] = write_shard(path, tensors | {"class_labels": torch.arange(5)})
    write_manifest(tmp_path / "cache", manifest)
    cache = LatentCache(tmp_path / "cache")
    cache.verify()
    cache.train.read(torch.arange(5))
    with pytest.raises(UserError) as error:
        cache.train.read(torch.tensor([0, 7]), torch.tensor([True, True]))
    assert str(error.value).startswith(f"{path} does not match its manifest.json: ")
