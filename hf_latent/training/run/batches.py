"""Data order and random draws that do not depend on the number of processes."""

import atexit
import multiprocessing.connection
import multiprocessing.util  # imported first, so that its exit handler is registered first
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

# One kernel draws a shard, so few shards are fast. With more processes than shards, a process draws
# more rows than it needs, which costs little.
SHARDS = 16


def draw_seeds(seed: int, purpose: str, *place: int, count: int = 1) -> list[int]:
    """Return the seeds of one purpose at one place of a training.

    Args:
        purpose: names what is drawn. Two purposes never share random numbers.
        place: for example step and micro-step, or the epoch.
        count: the number of seeds.
    """
    sequence = np.random.SeedSequence((seed, crc32(purpose.encode()), *place))
    return sequence.generate_state(count, np.uint64).tolist()


def seeded_generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """Create the CPU generator for one purpose at one place of a training; see `draw_seeds`."""
    return torch.Generator().manual_seed(draw_seeds(seed, purpose, *place)[0])


def seed_torch(seed: int, purpose: str, *place: int) -> None:
    """Seed torch's global generators as `seeded_generator`, for dropout, which uses no other."""
    torch.manual_seed(draw_seeds(seed, purpose, *place)[0])


@dataclass(frozen=True)
class ProcessRows:
    """The rows of every global batch that this process takes.

    Attributes:
        batch_size: rows of one process.
        process_index: from 0.
        num_processes: processes that share a global batch.
    """

    batch_size: int
    process_index: int = 0
    num_processes: int = 1

    @property
    def global_size(self) -> int:
        """Number of rows in a global batch."""
        return self.batch_size * self.num_processes

    @property
    def first(self) -> int:
        """This process's first row in a global batch."""
        return self.process_index * self.batch_size


class ShardedDraws:
    """Standard normal values for this process's rows of every global batch.

    The global batch is cut into 16 shards of equally many rows. Each shard has a seed of its own,
    which follows from (seed, purpose, step, micro-step, shard), and a process draws only the shards
    that contain its rows. So a row's values do not depend on the number of processes, and there is
    no random state to save. Another kind of device draws other values.

    Args:
        seed: of the training.
        purpose: names what is drawn. Two purposes never share random numbers.
        rows: this process's rows of every global batch, of any size.
        device: of the values.
    """

    def __init__(self, seed: int, purpose: str, rows: ProcessRows, device: torch.device):
        """Draw nothing yet."""
        self.seed, self.purpose, self.rows = seed, purpose, rows
        self.device, self.generator = device, torch.Generator(device)

    def normal(self, place: tuple[int, int], *shape: int) -> torch.Tensor:
        """Draw `(batch_size, *shape)` float32 values from a standard normal distribution.

        Args:
            place: step and micro-step, from 0.
            shape: of a row's values.
        """
        size = -(-self.rows.global_size // SHARDS)
        first, start = divmod(self.rows.first, size)
        last = (self.rows.first + self.rows.batch_size - 1) // size
        seeds = draw_seeds(self.seed, self.purpose, *place, count=SHARDS)[first : last + 1]
        values = torch.empty(len(seeds), size, *shape, device=self.device)
        for shard, seed in zip(values, seeds, strict=True):
            shard.normal_(generator=self.generator.manual_seed(seed))
        return values.flatten(0, 1)[start : start + self.rows.batch_size]


def init_reader(worker: int) -> None:
    """Let a reading process live as long as its training; a DataLoader's `worker_init_fn`.

    A job's processes often all get SIGTERM and Ctrl-C, and the training still needs batches to
    reach its next checkpoint, so the reader ignores them. It ends at once when its training ends,
    however that ended. torch's own watch looks every 5 seconds, and never sees a training that
    ended before the reader's first look.

    Args:
        worker: the process's number, which is not used.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # Of a training that ends while it takes a batch, multiprocessing's thread would print a
    # traceback. The reader's own errors reach the training.
    sys.excepthook = lambda *error: None
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # a DataLoader started this process
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


# Exit handlers run in reverse order, so this one runs before multiprocessing's.
@atexit.register
def end_readers() -> None:
    """Kill the reading processes that are left if a program fails.

    Without this, multiprocessing sends them SIGTERM, which they ignore, and waits for their end.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class GlobalBatchSampler:
    """The endless order of the data. Each process takes its rows of every global batch.

    The order of an epoch depends on (seed, epoch). Batches are cut from the concatenated orders of
    all epochs, so a batch may begin in one epoch and end in the next.

    Args:
        num_samples: the size of the data, at least 1.
        rows: the rows that this process takes.
        start_batch: the first batch to yield.
    """

    def __init__(self, num_samples: int, rows: ProcessRows, seed: int, start_batch: int = 0):
        """Keep the settings; see the class."""
        self.num_samples, self.rows, self.seed = num_samples, rows, seed
        self.start_batch = start_batch
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> np.ndarray:
        generator = seeded_generator(self.seed, "order", epoch)
        return torch.randperm(self.num_samples, generator=generator).numpy()

    def epochs_and_indices(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return epoch and index, `(batch_size,)` int64 each, of this process's rows of a batch."""
        first = batch * self.rows.global_size + self.rows.first
        epochs, places = np.divmod(first + np.arange(self.rows.batch_size), self.num_samples)
        indices = np.empty_like(places)
        for epoch in range(epochs[0], epochs[-1] + 1):
            in_epoch = epochs == epoch
            indices[in_epoch] = self._order(epoch)[places[in_epoch]]
        return epochs, indices

    def keys(self, batch: int) -> list[tuple[int, int]]:
        """Return the (epoch, index) keys of this process's rows of a batch."""
        epochs, indices = self.epochs_and_indices(batch)
        return list(zip(epochs.tolist(), indices.tolist(), strict=True))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the keys of batch after batch, without end."""
        return map(self.keys, count(self.start_batch))


def global_batches(
    dataset: Dataset, rows: ProcessRows, seed: int, start_batch: int, num_workers: int
) -> Iterator[Any]:
    """Read this process's rows of every global batch, without end.

    Args:
        dataset: indexed by (epoch, index) keys.
        rows: the rows that this process takes.
        start_batch: the first batch to read.
        num_workers: number of reading processes; 0 reads in this one.
    """
    sampler = GlobalBatchSampler(len(dataset), rows, seed, start_batch)  # type: ignore[arg-type]
    return iter(
        DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=init_reader,
        )
    )
