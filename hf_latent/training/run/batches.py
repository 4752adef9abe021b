"""Order and draws of a training that do not depend on how many processes run."""

import atexit
import multiprocessing.util  # registers its own end of a program first
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def seeded_generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """Make the random generator for one purpose at one place in a training.

    Args:
        seed: the run's.
        purpose: what is drawn, so that two purposes never share their numbers.
        place: for example the step and the micro-step, or the epoch.

    Returns:
        A generator on the CPU.
    """
    entropy = (seed, crc32(purpose.encode()), *place)
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def seed_torch(seed: int, purpose: str, *place: int) -> None:
    """Seed torch's own generators, on every device, for what takes no other: dropout.

    Args:
        seed: the run's.
        purpose: what is drawn.
        place: as of `seeded_generator`.
    """
    torch.manual_seed(seeded_generator(seed, purpose, *place).initial_seed())


@dataclass(frozen=True)
class ProcessRows:
    """The rows of every global batch that this process takes.

    Everything random in a step is drawn for the global batch, and then cut.

    Attributes:
        batch_size: rows of one process.
        process_index: this process's number, from 0.
        num_processes: how many share a global batch.
    """

    batch_size: int
    process_index: int = 0
    num_processes: int = 1

    @property
    def global_size(self) -> int:
        """Rows of a global batch."""
        return self.batch_size * self.num_processes

    def select(self, global_batch: torch.Tensor) -> torch.Tensor:
        """Cut this process's rows, `(batch_size, ...)`, out of `(global_size, ...)`."""
        return global_batch[self.process_index * self.batch_size :][: self.batch_size]


def ignore_signals(worker: int) -> None:
    """Let a reading process outlive SIGTERM and Ctrl-C, so that the training can save itself.

    Both are often sent to all processes of a job; a reader ends with its training.

    Args:
        worker: the reader's number, as a DataLoader hands it to its `worker_init_fn`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


# What is registered later is called earlier: before what multiprocessing registered.
@atexit.register
def end_readers() -> None:
    """End the reading processes that are left, as they are if a program fails.

    At exit, multiprocessing sends them a SIGTERM, which readers ignore, and waits for their end.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class GlobalBatchSampler:
    """The endless order of the data: each process takes its rows of every global batch.

    Every epoch has an order of its own, from (seed, epoch). Batches follow each other through the
    epochs' orders without a gap, so a batch may begin in one epoch and end in the next.

    Args:
        num_samples: the size of the data, at least 1.
        rows: which rows this process takes.
        seed: the run's.
        start_batch: how many batches to pass over, to go on where a run stopped.
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
        """Return the epochs and indices, `(batch_size,)` int64 each, of this process's rows."""
        first = batch * self.rows.global_size + self.rows.process_index * self.rows.batch_size
        epochs, ranks = np.divmod(first + np.arange(self.rows.batch_size), self.num_samples)
        indices = np.empty_like(ranks)
        for epoch in range(epochs[0], epochs[-1] + 1):
            there = epochs == epoch
            indices[there] = self._order(epoch)[ranks[there]]
        return epochs, indices

    def keys(self, batch: int) -> list[tuple[int, int]]:
        """Return this process's (epoch, index) keys of one global batch."""
        epochs, indices = self.epochs_and_indices(batch)
        return list(zip(epochs.tolist(), indices.tolist(), strict=True))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield one list of (epoch, index) keys a batch, without end."""
        return (self.keys(batch) for batch in count(self.start_batch))


def global_batches(
    dataset: Dataset, rows: ProcessRows, seed: int, start_batch: int, num_workers: int
) -> Iterator[Any]:
    """Read this process's rows of every global batch, without end.

    Args:
        dataset: takes (epoch, index) keys.
        rows: which rows this process takes.
        seed: the run's.
        start_batch: how many batches to pass over.
        num_workers: processes that read; 0: this one reads.
    """
    sampler = GlobalBatchSampler(len(dataset), rows, seed, start_batch)  # type: ignore[arg-type]
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
    )
    return iter(loader)
