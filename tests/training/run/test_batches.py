import os
import signal
import subprocess
import sys
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from hf_latent.training.run.batches import (
    GlobalBatchSampler,
    ProcessRows,
    init_reader,
    seeded_generator,
)
from tests import forked


def first_keys(sampler: GlobalBatchSampler, batches: int) -> list[list[tuple[int, int]]]:
    return list(islice(sampler, batches))


def test_each_epoch_has_each_image_once_in_another_order():
    keys = sum(first_keys(GlobalBatchSampler(10, ProcessRows(4), seed=1), 5), [])
    epochs = [[index for e, index in keys if e == epoch] for epoch in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert keys != sum(first_keys(GlobalBatchSampler(10, ProcessRows(4), seed=2), 5), [])


def test_processes_share_the_global_batch():
    whole = first_keys(GlobalBatchSampler(11, ProcessRows(6), seed=3), 4)
    shares = [
        first_keys(GlobalBatchSampler(11, ProcessRows(2, rank, 3), seed=3), 4) for rank in range(3)
    ]
    assert [sum(rows, []) for rows in zip(*shares, strict=True)] == whole


def test_a_sampler_continues_at_a_batch():
    sampler = GlobalBatchSampler(7, ProcessRows(3), seed=0)
    later = GlobalBatchSampler(7, ProcessRows(3), seed=0, start_batch=5)
    assert first_keys(sampler, 9)[5:] == first_keys(later, 4)


def test_the_rows_of_a_process():
    assert ProcessRows(2, 1, 3).global_size == 6
    assert [ProcessRows(2, rank, 3).first for rank in range(3)] == [0, 2, 4]


def test_generators_differ_by_seed_purpose_and_place():
    def draw(*arguments):
        return torch.rand(3, generator=seeded_generator(*arguments)).tolist()

    places = [(0, "order", 0), (0, "order", 1), (1, "order", 0), (0, "posterior", 0)]
    places += [(0, "order"), (0, "order", 0, 1)]
    draws = [draw(*place) for place in places]
    assert len({tuple(d) for d in draws}) == len(places) - 1  # a last 0 is the same as none
    assert draws[0] == draw(0, "order", 0)


def read_handlers(_: object) -> list[signal.Handlers]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_a_reading_process_ignores_sigterm_and_ctrl_c():
    loader = DataLoader(
        range(2),
        batch_size=None,
        collate_fn=read_handlers,
        num_workers=1,
        worker_init_fn=init_reader,
    )
    assert list(loader) == [[signal.SIG_IGN] * 2] * 2


FAILING = """
import torch
from hf_latent.training.run.batches import init_reader

loader = torch.utils.data.DataLoader(range(100), num_workers=1, worker_init_fn=init_reader)
read = iter(loader)
next(read)
print(read._workers[0].pid, flush=True)
raise RuntimeError("the training fails")
"""


@pytest.mark.slow
def test_a_failing_program_ends_its_reading_processes():
    done = forked.run([sys.executable, "-c", FAILING], timeout=100)
    assert done.returncode == 1
    assert "RuntimeError: the training fails" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


ORPHANED = """
import os, time
from torch.utils.data import DataLoader
from hf_latent.training.run.batches import init_reader

def init_late(worker):
    time.sleep(0.5)
    init_reader(worker)

read = iter(DataLoader(range(100), num_workers=2, worker_init_fn=init_late))
os._exit(3)
"""


CUT_OFF = """
import multiprocessing, socket, time
from multiprocessing import resource_sharer
from hf_latent.training.run.batches import init_reader

def read(pipe):
    init_reader(0)
    address, _ = resource_sharer.DupFd(0)._id  # as a reader hands over a batch
    pipe.send(address)
    pipe.recv()

own, other = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=read, args=(other,))
process.start()
taker = socket.socket(socket.AF_UNIX)
taker.connect(own.recv())
taker.close()
time.sleep(0.5)
own.send(None)
process.join()
"""


def test_a_reader_says_nothing_if_its_training_ends_while_it_takes_a_batch():
    found = subprocess.run([sys.executable, "-c", CUT_OFF], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.slow
def test_readers_end_even_if_their_training_ended_before_they_began():
    # It runs until no process holds its output open.
    done = forked.run([sys.executable, "-c", ORPHANED], timeout=60)
    assert done.returncode == 3
