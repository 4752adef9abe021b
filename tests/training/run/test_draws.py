import pytest
import torch

from hf_latent.training.run.batches import SHARDS, ProcessRows, ShardedDraws, draw_seeds

CPU = torch.device("cpu")


def draw(rows: ProcessRows, place=(3, 1), shape=(2, 5), seed=7, purpose="noise") -> torch.Tensor:
    return ShardedDraws(seed, purpose, rows, CPU).normal(place, *shape)


@pytest.mark.parametrize("size", [4, 12, 36, 64, 100, 128, 300])
def test_a_row_does_not_depend_on_the_number_of_processes(size):
    whole = draw(ProcessRows(size))
    assert whole.shape == (size, 2, 5)
    for processes in (2, 3, 4, size):
        if size % processes == 0:
            ranks = [ProcessRows(size // processes, rank, processes) for rank in range(processes)]
            assert torch.equal(torch.cat([draw(rows) for rows in ranks]), whole), processes


def test_a_shard_is_drawn_by_a_generator_of_its_own():
    rows = 3 * SHARDS
    seeds = draw_seeds(7, "noise", 3, 1, count=SHARDS)
    shards = [torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(x)) for x in seeds]
    assert torch.equal(draw(ProcessRows(rows)), torch.cat(shards))


def test_a_process_draws_only_the_shards_of_its_rows(monkeypatch):
    drawn = []
    normal = torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda x, **given: drawn.append(x.shape) or normal(x, **given)
    )
    draw(ProcessRows(32, 1, 4))
    assert drawn == [(8, 2, 5)] * (SHARDS // 4)


def test_values_are_normal_and_differ_by_seed_purpose_and_place():
    rows = ProcessRows(500)
    changes = [{}, {"seed": 8}, {"purpose": "other"}, {"place": (3, 0)}, {"place": (2, 1)}]
    drawn = torch.stack([draw(rows, shape=(40,), **change).flatten() for change in changes])
    again = draw(rows, shape=(40,)).flatten()
    assert torch.equal(drawn[0], again)
    correlations = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlations.abs().max() < 0.03
    shards = drawn[0].view(500, 40)[:480].view(15, 32 * 40)
    assert (torch.corrcoef(shards) - torch.eye(15)).abs().max() < 0.12, "shards are independent"
    assert drawn.mean(1).abs().max() < 0.03
    assert (drawn.std(1) - 1).abs().max() < 0.02
