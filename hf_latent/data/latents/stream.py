"""A latent cache as a stream, for a cache that exceeds the memory or, on the Hub, the disk.

A fixed number of lanes reads the shards (MosaicML's StreamingDataset calls them canonical nodes).
In each epoch the shards are shuffled and dealt to the lanes, and every global batch has equally
many images from each lane. Processes and their workers share the lanes, so the batches do not
depend on the number of processes or workers. A lane reads a few shards at a time, a window, and
shuffles all images of a window. All draws follow from (seed, epoch): a stream can begin at any
batch without reading the earlier ones. If lanes get unequal numbers of images, they end an epoch
at different batches; each lane still reads each of its images once per epoch.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hf_latent.data.images.flips import is_flipped
from hf_latent.data.latents.cache import LatentBatch, LatentSplit, concatenate
from hf_latent.data.latents.store import ShardStore
from hf_latent.errors import UserError

ORDER, WINDOW = 4, 5  # part of the keys of random draws
READ_ROWS = 1024


@dataclass(frozen=True)
class Window:
    """A few shards whose images are shuffled together.

    Attributes:
        epoch: of its lane.
        shards: their numbers.
        skipped: images at the start of its order that belong to batches before the first one.
        key: of the random draw of its order.
    """

    epoch: int
    shards: tuple[int, ...]
    skipped: int
    key: tuple[int, ...]


class LatentStream(IterableDataset):
    """Endless batches of latents of the training images.

    Args:
        store: gives the shards.
        batch_size: images of a global batch, over all processes.
        horizontal_flip: mirror half of the images.
        start_batch: the first batch, to resume a run.
        lanes: places that are read at once; more mix better, and need as many shards.
        buffer_rows: images that are shuffled together, over all lanes; more mix better, and use
            more of the disk if the cache is on the Hub.
        process_index: of this process.
        num_processes: processes that share a global batch.

    Raises:
        UserError: if the lanes do not fit the shards, the batch or the processes.
    """

    def __init__(
        self,
        store: ShardStore,
        batch_size: int,
        seed: int,
        horizontal_flip: bool = False,
        start_batch: int = 0,
        lanes: int = 8,
        buffer_rows: int = 65_536,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        """Check the settings; read no shard yet."""
        shards = len(store.rows)
        if lanes > shards:
            raise UserError(
                f"--stream_lanes {lanes} needs as many shards, but {store.name} has {shards}: pass "
                f"--stream_lanes {shards} or fewer, or encode again with fewer --shard_rows"
            )
        if batch_size % lanes or lanes % num_processes:
            raise UserError(
                f"--stream_lanes {lanes} does not fit: it must divide the global batch "
                f"({batch_size} images), and be a multiple of the processes ({num_processes})"
            )
        self.store, self.seed, self.horizontal_flip = store, seed, horizontal_flip
        self.lane_rows, self.start_batch = batch_size // lanes, start_batch
        self.lanes, self.buffer_rows = lanes, buffer_rows
        share = lanes // num_processes
        self.own_lanes = range(process_index * share, (process_index + 1) * share)

    def __iter__(self) -> Iterator[LatentBatch | UserError]:
        """Yield this process's rows of every batch; in a worker, the rows of its lanes.

        A worker yields a `UserError`, because the loader adds a traceback to a raised one.
        """
        worker = get_worker_info()
        own = self.own_lanes
        if worker is not None:
            share = len(own) // worker.num_workers
            own = own[worker.id * share :][:share]
        try:
            for parts in zip(*(self._lane(lane) for lane in own), strict=True):
                yield concatenate(list(parts))
        except UserError as error:
            if worker is None:
                raise
            yield error

    def _draw(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))

    def windows(self, lane: int) -> Iterator[Window]:
        """Yield a lane's windows, from the one that has the first batch."""
        skipped, rows = self.start_batch * self.lane_rows, self.store.rows
        for epoch in count():
            order = self._draw(epoch, ORDER).permutation(len(rows))[lane :: self.lanes].tolist()
            if skipped >= sum(rows[number] for number in order):
                skipped -= sum(rows[number] for number in order)
                continue
            place = 0
            while order:
                shards: tuple[int, ...] = ()
                while order and sum(rows[x] for x in shards) * self.lanes < self.buffer_rows:
                    shards += (order.pop(0),)
                size = sum(rows[number] for number in shards)
                if skipped < size:
                    yield Window(epoch, shards, skipped, (epoch, lane, place, WINDOW))
                skipped = max(0, skipped - size)
                place += 1

    def _lane(self, lane: int) -> Iterator[LatentBatch]:
        """Yield a lane's images, `lane_rows` at a time."""
        split, rest = self.store.open_lane(), list[LatentBatch]()
        # The next window is fetched while this one is read.
        with ThreadPoolExecutor(1) as ahead:
            windows = pairwise(self.windows(lane))
            current, following = next(windows)
            fetched = ahead.submit(self.store.fetch, split, current.shards)
            while True:
                fetched.result()
                fetched = ahead.submit(self.store.fetch, split, following.shards)
                for part in self._read(split, current):
                    rest.append(part)
                    joined = concatenate(rest)
                    whole = len(joined) // self.lane_rows * self.lane_rows
                    for start in range(0, whole, self.lane_rows):
                        yield joined.rows(start, start + self.lane_rows)
                    rest = [joined.rows(whole, len(joined))]
                self.store.drop(split, set(current.shards) - set(following.shards))
                current, following = next(windows)

    def _read(self, split: LatentSplit, window: Window) -> Iterator[LatentBatch]:
        """Read a window's images in its order, `READ_ROWS` at a time."""
        size = self.store.shard_rows
        indices = np.concatenate([np.arange(self.store.rows[x]) + x * size for x in window.shards])
        indices = self._draw(*window.key).permutation(indices)[window.skipped :]
        for chosen in torch.from_numpy(indices).split(READ_ROWS):
            mirrored = None
            if self.horizontal_flip:
                epochs = np.full(len(chosen), window.epoch)
                flips = is_flipped(self.seed, epochs, chosen.numpy(), sum(self.store.rows))
                mirrored = torch.from_numpy(flips)
            yield split.read(chosen, mirrored)


def stream_batches(
    stream: LatentStream,
    num_workers: int = 0,
    worker_init_fn: Callable[[int], None] | None = None,
) -> Iterator[LatentBatch]:
    """Return an iterator over a stream; the batches do not depend on the workers.

    Args:
        stream: of this process.
        num_workers: processes that read, each its own lanes; 0: this process reads.
        worker_init_fn: called in each worker with its number.

    Raises:
        UserError: if the workers cannot share the lanes equally.
    """
    if num_workers == 0:
        return iter(stream)
    if len(stream.own_lanes) % num_workers:
        raise UserError(
            f"--dataloader_num_workers {num_workers} does not fit: it must divide the "
            f"{len(stream.own_lanes)} of the --stream_lanes that each process has"
        )
    return _read_with_workers(stream, num_workers, worker_init_fn)


def _read_with_workers(
    stream: LatentStream, num_workers: int, worker_init_fn: Callable[[int], None] | None
) -> Iterator[LatentBatch]:
    loader: DataLoader = DataLoader(
        stream, batch_size=None, num_workers=num_workers, worker_init_fn=worker_init_fn
    )
    read = iter(loader)
    try:
        while True:  # a loader reads from its workers in turn
            parts = []
            for _ in range(num_workers):
                part = next(read)
                if isinstance(part, UserError):
                    raise part
                parts.append(part)
            yield concatenate(parts)
    finally:
        del read  # ends the workers now; the traceback of an exception would keep them alive
