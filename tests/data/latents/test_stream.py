from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from hf_latent.data.images.flips import is_flipped
from hf_latent.data.latents import stream as latent_stream
from hf_latent.data.latents.cache import LatentBatch, concatenate
from hf_latent.data.latents.store import open_shard_store
from hf_latent.data.latents.stream import LatentStream, stream_batches
from hf_latent.errors import UserError
from tests.data.latent_caches import assert_same_batch, cut_short, flip_a_bit, write_latents

ROWS, SHARD_ROWS = 62, 4  # 16 shards, the last of 2 rows
SETTINGS = {"batch_size": 8, "seed": 3, "horizontal_flip": True, "lanes": 4, "buffer_rows": 32}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "cache"
    return folder, write_latents(folder, ROWS, SHARD_ROWS)["train"]


def open_stream(cache, **changes) -> LatentStream:
    return LatentStream(open_shard_store(str(cache[0])), **SETTINGS | changes)


def first(stream, batches: int, workers: int = 0) -> list[LatentBatch]:
    return list(islice(stream_batches(stream, workers), batches))


def labels(batches: list[LatentBatch]) -> list[list[int]]:
    return [batch.conditions["class_labels"].tolist() for batch in batches]


def assert_same(found: list[LatentBatch], expected: list[LatentBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_same_batch(one, other)


def lane_images(batches: list[LatentBatch], lane: int, lane_rows: int) -> list[int]:
    return sum((x[lane * lane_rows :][:lane_rows] for x in labels(batches)), [])


def epoch_images(stream: LatentStream, batches: list[LatentBatch], epochs: int):
    """Split what all lanes read into epochs: lists of images, in the lanes' order."""
    found: list[list[list[int]]] = [[] for _ in range(epochs)]
    for lane in range(stream.lanes):
        images = lane_images(batches, lane, stream.lane_rows)
        sizes = [0] * (epochs + 1)
        for window in stream.windows(lane):
            if window.epoch > epochs:
                break
            sizes[window.epoch] += sum(stream.store.rows[x] for x in window.shards)
        for epoch in range(epochs):
            start = sum(sizes[:epoch])
            found[epoch].append(images[start : start + sizes[epoch]])
    return found


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("buffer_rows", [1, 32, 10_000])
def test_every_epoch_has_every_image_once_over_all_lanes(cache, lanes, buffer_rows):
    stream = open_stream(cache, lanes=lanes, buffer_rows=buffer_rows)
    found = epoch_images(stream, first(stream, 40), epochs=3)
    for epoch in found:
        assert sorted(sum(epoch, [])) == list(range(ROWS))
    assert found[0] != found[1] != found[2]


def test_lanes_with_unequal_shards_have_every_image_once_too(cache):
    stream = open_stream(cache, lanes=3, batch_size=9)
    for epoch in epoch_images(stream, first(stream, 40), epochs=3):
        assert sorted(sum(epoch, [])) == list(range(ROWS))


def test_each_seed_has_another_order(cache):
    orders = [labels(first(open_stream(cache, seed=seed), 8)) for seed in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert labels(first(open_stream(cache, seed=1), 8)) == orders[1]


def test_a_window_shuffles_the_images_of_its_shards(cache):
    stream = open_stream(cache, lanes=1, buffer_rows=16)
    images, start = lane_images(first(stream, 8), 0, 8), 0
    for window in islice(stream.windows(0), 3):
        inside = [
            shard * SHARD_ROWS + row
            for shard in window.shards
            for row in range(stream.store.rows[shard])
        ]
        part = images[start : start + len(inside)]
        assert sorted(part) == sorted(inside)
        assert part != inside
        shards = [image // SHARD_ROWS for image in part]
        changes = sum(a != b for a, b in pairwise(shards))
        assert changes > len(window.shards), "images of one shard must not stay together"
        start += len(inside)


def test_windows_of_the_same_shards_are_shuffled_differently(cache):
    stream = open_stream(cache, lanes=1, batch_size=2, buffer_rows=10_000)
    windows = list(islice(stream.windows(0), 3))
    lane = stream.store.open_lane()
    orders = [sum(labels(stream._read(lane, window)), []) for window in windows]
    assert orders[0] != orders[1]
    # Lanes differ too, even with equally many shards.
    lanes = open_stream(cache, lanes=8, buffer_rows=1)
    places = {
        tuple(lanes._draw(*next(lanes.windows(lane)).key).permutation(4)) for lane in range(8)
    }
    assert len(places) > 3


def test_epochs_shuffle_shards_and_windows_shuffle_images_differently(cache):
    stream = open_stream(cache, lanes=1, buffer_rows=1)
    shards = [window.shards[0] for window in islice(stream.windows(0), 48)]
    epochs = [shards[start : start + 16] for start in (0, 16, 32)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(16))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    windows = islice(stream.windows(0), 16)
    assert len({tuple(stream._draw(*x.key).permutation(4)) for x in windows}) > 5


def test_the_buffer_sets_the_size_of_a_window(cache):
    for lanes, buffer_rows, shards in ((1, 1, 1), (1, 9, 3), (4, 32, 2), (4, 33, 3), (2, 10**6, 8)):
        stream = open_stream(cache, lanes=lanes, buffer_rows=buffer_rows)
        whole = next(stream.windows(0)).shards
        short = stream.store.rows[15] < SHARD_ROWS and 15 in whole
        assert len(whole) in ((shards, shards + 1) if short else (shards,))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one_process(cache, processes):
    whole = first(open_stream(cache), 30)
    shares = [
        first(open_stream(cache, process_index=index, num_processes=processes), 30)
        for index in range(processes)
    ]
    assert_same([concatenate(list(parts)) for parts in zip(*shares, strict=True)], whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(cache, workers):
    assert_same(first(open_stream(cache), 20, workers), first(open_stream(cache), 20))


def test_workers_of_one_process_of_two(cache):
    settings = {"process_index": 1, "num_processes": 2, "start_batch": 5}
    found = first(open_stream(cache, **settings), 10, workers=2)
    assert_same(found, first(open_stream(cache, **settings), 10))


@pytest.mark.parametrize("changes", [{}, {"lanes": 1}, {"lanes": 8, "buffer_rows": 1}])
def test_a_later_start_yields_the_rest_of_the_stream(cache, changes):
    whole = first(open_stream(cache, **changes), 34)
    for start in (*range(20), 29, 31):
        found = first(open_stream(cache, **changes, start_batch=start), 3)
        assert_same(found, whole[start : start + 3])


def test_a_later_start_reads_no_earlier_window(cache, monkeypatch):
    settings = {"lanes": 1, "buffer_rows": 16}
    whole = [window.shards for window in islice(open_stream(cache, **settings).windows(0), 4)]
    stream, fetched = open_stream(cache, **settings, start_batch=4), []
    monkeypatch.setattr(stream.store, "fetch", lambda lane, shards: fetched.append(shards))
    first(stream, 1)
    assert fetched[0] in (whole[1], whole[2])
    assert fetched[1] == whole[whole.index(fetched[0]) + 1]


@pytest.mark.parametrize("read_rows", [1, 3, 1024])
def test_how_many_rows_are_read_at_once_does_not_matter(cache, monkeypatch, read_rows):
    expected = first(open_stream(cache), 20)
    monkeypatch.setattr(latent_stream, "READ_ROWS", read_rows)
    assert_same(first(open_stream(cache), 20), expected)


def test_an_image_is_mirrored_by_seed_epoch_and_number(cache):
    _, train = cache
    stream = open_stream(cache, lanes=1)
    seen = first(stream, 20)
    images = torch.tensor(lane_images(seen, 0, 8))
    epochs = np.arange(len(images)) // ROWS
    mirrored = torch.from_numpy(is_flipped(3, epochs, images.numpy(), ROWS))
    assert 40 < mirrored.sum() < 120
    found = concatenate(seen)
    assert torch.equal(found.posteriors.mean, train["mean"][images, mirrored.long()])
    assert torch.equal(found.posteriors.std, train["std"][images, mirrored.long()])


def test_without_flips_no_image_is_mirrored(cache):
    found = concatenate(first(open_stream(cache, horizontal_flip=False), 10))
    rows = found.conditions["class_labels"]
    assert torch.equal(found.posteriors.mean, cache[1]["mean"][rows, 0])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_named_when_it_is_reached(tmp_path, damage, workers):
    folder = tmp_path / "cache"
    write_latents(folder, ROWS, SHARD_ROWS)
    stream = open_stream((folder, None), lanes=1, batch_size=4, buffer_rows=8)
    windows = list(islice(stream.windows(0), 4))
    name = f"train-{windows[3].shards[0]:06d}.safetensors"
    whole = sum(stream.store.rows[shard] for window in windows[:3] for shard in window.shards)
    damage(folder / name)
    batches = stream_batches(stream, workers)
    assert sum(len(batch) for batch in islice(batches, whole // 4)) == whole // 4 * 4
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value).startswith(f"{folder / name} is damaged")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lanes": 17, "batch_size": 17},
            "--stream_lanes 17 needs as many shards, but {cache} has 16: pass --stream_lanes 16",
        ),
        ({"batch_size": 10}, "it must divide the global batch (10 images)"),
        ({"num_processes": 3}, "a multiple of the processes (3)"),
        ({"batch_size": 2}, "--stream_lanes 4 does not fit"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(cache, changes, message):
    with pytest.raises(UserError) as error:
        open_stream(cache, **changes)
    assert message.format(cache=cache[0]) in str(error.value)
    assert "\n" not in str(error.value)


def test_as_many_lanes_as_shards_are_enough(cache):
    stream = open_stream(cache, lanes=16, batch_size=16)
    for epoch in epoch_images(stream, first(stream, 12), epochs=2):
        assert sorted(sum(epoch, [])) == list(range(ROWS))


def test_workers_that_cannot_share_the_lanes_are_refused(cache):
    with pytest.raises(
        UserError, match="--dataloader_num_workers 3 does not fit: it must divide the 4"
    ):
        first(open_stream(cache), 1, workers=3)
    with pytest.raises(UserError, match="must divide the 2 of the --stream_lanes"):
        first(open_stream(cache, num_processes=2), 1, workers=4)


def test_the_held_out_images_are_checked_when_they_are_opened(tmp_path):
    folder = tmp_path / "cache"
    validation = write_latents(folder)["validation"]
    store = open_shard_store(str(folder))
    found = store.open_validation().read(torch.tensor([6, 0]))
    assert torch.equal(found.posteriors.mean, validation["mean"][[6, 0], 0])
    flip_a_bit(folder / "validation-000001.safetensors")
    with pytest.raises(UserError, match=r"validation-000001\.safetensors is damaged"):
        store.open_validation()
