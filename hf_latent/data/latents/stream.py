"""A latent cache as a stream, for one larger than memory or than the disk: here or on the Hub.

The data are read in a fixed number of lanes (MosaicML's StreamingDataset calls them canonical
nodes): in each epoch the shards are shuffled and dealt to the lanes, and every global batch takes
equally many images from each. Processes, and their workers, share the lanes, so that the batches do
not depend on how many there are. A lane takes a few shards at a time, a window, and shuffles all of
their images. Everything follows from (seed, epoch), so a stream begins at any batch, and reads
nothing of what lies before. Where the lanes' shards do not add up to equally many images, the lanes
end an epoch at different batches; each image is still read once in each epoch of its lane.
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

ORDER, WINDOW = 4, 5  # what is drawn
READ_ROWS = 1024


@dataclass(frozen=True)
class Window:
    """A few shards whose images are shuffled together.

    Attributes:
        epoch: in which.
        shards: numbers of the shards.
        skipped: so many images of its order were read before the stream began.
        key: what its order is drawn from.
    """

    epoch: int
    shards: tuple[int, ...]
    skipped: int
    key: tuple[int, ...]


class LatentStream(IterableDataset):
    """Batches of latents of the training images, without end.

    Args:
        store: gives the shards.
        batch_size: images of a global batch, over all processes.
        seed: the run's.
        horizontal_flip: take half of the images mirrored.
        start_batch: the first batch, to go on where a run stopped.
        lanes: places that are read at once; more mix better, and need as many shards.
        buffer_rows: images that are shuffled together, over all lanes; more mix better, and take
            more of the disk where the cache is on the Hub.
        process_index: this process's number.
        num_processes: how many share a global batch.

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
        """Keep the settings; nothing is read yet."""
        shards = len(store.rows)
        if lanes > shards:
            raise UserError(
                f"--stream_lanes {lanes} needs as many shards, and {store.name} has {shards}: pass "
                f"--stream_lanes {shards} or fewer, or encode again with fewer --shard_rows"
            )
        if batch_size % lanes or lanes % num_processes:
            raise UserError(
                f"--stream_lanes {lanes} does not fit: the global batch ({batch_size} images) must "
                f"be a multiple of it, and it a multiple of the processes ({num_processes})"
            )
        self.store, self.seed, self.horizontal_flip = store, seed, horizontal_flip
        self.lane_rows, self.start_batch = batch_size // lanes, start_batch
        self.lanes, self.buffer_rows = lanes, buffer_rows
        share = lanes // num_processes
        self.own_lanes = range(process_index * share, (process_index + 1) * share)

    def __iter__(self) -> Iterator[LatentBatch | UserError]:
        """Yield this process's rows of every batch; in a worker, those of its lanes.

        A worker yields its mistake too: a loader would put a traceback around what is raised.
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
        """Yield a lane's windows, from the one that the stream begins in."""
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
        """Read a window's images in its order, some at a time."""
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
    """Read a stream, with workers or without; the batches are the same.

    Args:
        stream: of this process.
        num_workers: processes that read; each has its own lanes.
        worker_init_fn: called in each of them with its number.

    Returns:
        This process's rows of every batch, one after the other.

    Raises:
        UserError: if the workers cannot share the lanes.
    """
    if num_workers == 0:
        return iter(stream)
    if len(stream.own_lanes) % num_workers:
        raise UserError(
            f"--dataloader_num_workers {num_workers} does not fit: each process has "
            f"{len(stream.own_lanes)} of the lanes (--stream_lanes), which must be a multiple of it"
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
        while True:  # a loader takes from its workers in turn
            parts = []
            for _ in range(num_workers):
                part = next(read)
                if isinstance(part, UserError):
                    raise part
                parts.append(part)
            yield concatenate(parts)
    finally:
        del read  # its workers end now, not when the traceback of what is raised here is given up
