"""Speed of reading random batches of a latent cache, compared with tensors in memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.latents.cache import LatentBatch, LatentSplit
from hf_latent.data.latents.manifest import split_ranges
from hf_latent.data.latents.store import ShardStore
from hf_latent.data.latents.stream import LatentStream
from hf_latent.data.shards import write_shard
from hf_latent.evaluation.machine import anonymous_memory_mb
from hf_latent.evaluation.timing import alternate
from hf_latent.experiments.benchmark.benchmark import median_ratio
from hf_latent.pipeline.encode import LatentPosteriors
from hf_latent.training.run.batches import GlobalBatchSampler, ProcessRows

LATENT_SHAPE = (4, 8, 8)
READ_BATCH, READ_BATCHES = 128, 2000
SHARD_ROWS = 16_384  # of a cache of 8x8x4 latents with a million images


def make_cache(folder: Path, rows: int) -> tuple[LatentSplit, ShardStore]:
    """Write a cache of random posteriors.

    Args:
        rows: number of latents.

    Returns:
        Its training split, and its store for a stream, with all checksums marked as checked.
    """
    manifest = {
        "latent_shape": LATENT_SHAPE,
        "shard_rows": SHARD_ROWS,
        "id2label": {"0": "any"},
        "captions": None,
        "mirrored": False,
        "splits": {"train": {"rows": rows}},
    }
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    for name, shard in split_ranges(manifest, "train").items():
        mean = torch.randn(len(shard), 1, *LATENT_SHAPE, generator=generator)
        std = torch.rand(len(shard), 1, *LATENT_SHAPE, generator=generator)
        labels = torch.zeros(len(shard), dtype=torch.int64)
        write_shard(folder / name, {"mean": mean, "std": std, "class_labels": labels})
    store = ShardStore(folder, manifest, "a made cache")
    store.checked.update(range(len(store.rows)))
    return LatentSplit(folder, manifest, "train"), store


def sampling_rate(open_batches: Callable[[], Iterator[LatentBatch]]) -> float:
    """Return the latents a second that are read and sampled.

    The time includes opening the batches and closing them, so all reading ahead counts.
    """
    generator = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    with closing(open_batches()) as batches:  # type: ignore[type-var]
        for posteriors in (batch.posteriors for batch in islice(batches, READ_BATCHES)):
            posteriors.sample(torch.randn(posteriors.mean.shape, generator=generator))
    return READ_BATCH * READ_BATCHES / (time.perf_counter() - start)


def benchmark_reading(folder: Path, rows: int, rounds: int, name: str) -> dict[str, Any]:
    """Compare reading random batches of a cache with the same batches of tensors in memory.

    Args:
        folder: for the cache.
        rows: number of its latents.
        rounds: number of runs of each side.
        name: prefix of the figures.

    Returns:
        Figures for bench.json. The memory is measured before the tensors are in it.
    """
    split, store = make_cache(folder, rows)
    sampler = GlobalBatchSampler(rows, ProcessRows(READ_BATCH), seed=0)

    def keys() -> Iterator[tuple[torch.Tensor, None]]:
        return ((torch.from_numpy(sampler.epochs_and_indices(batch)[1]), None) for batch in count())

    def cached() -> Iterator[LatentBatch]:
        return split.read_batches(keys())

    memory_mb = []
    for _ in range(rounds + 1):
        sampling_rate(cached)
        memory_mb.append(anonymous_memory_mb())
    whole = split.read(torch.arange(rows))
    labels = torch.zeros(rows, dtype=torch.int64)

    def from_memory() -> Iterator[LatentBatch]:
        for indices, _ in keys():
            posteriors = LatentPosteriors(
                whole.posteriors.mean.index_select(0, indices),
                whole.posteriors.std.index_select(0, indices),
            )
            yield LatentBatch(posteriors, {"class_labels": labels.index_select(0, indices)})

    def streamed() -> Iterator[LatentBatch]:
        return iter(LatentStream(store, READ_BATCH, seed=0, lanes=min(4, len(store.rows))))

    sides = {"cache": cached, "memory": from_memory, "stream": streamed}
    rates = alternate({side: partial(sampling_rate, x) for side, x in sides.items()}, rounds)
    return {
        f"{name}_latents": rows,
        f"{name}_ratio_median": median_ratio(rates["cache"], rates["memory"]),
        f"{name}_stream_ratio_median": median_ratio(rates["stream"], rates["memory"]),
        **{f"{name}_{side}_latents_per_second": rate for side, rate in rates.items()},
        f"{name}_anonymous_memory_mb": memory_mb,
    }
