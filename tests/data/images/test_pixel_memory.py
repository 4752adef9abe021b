import pickle

import numpy as np

from hf_latent.data.images.pixel_memory import PixelMemory


def test_returns_what_was_put_and_nothing_else():
    memory = PixelMemory(3, (2, 2, 1))
    assert memory.get(1) is None
    array = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    memory.put(1, array)
    assert np.array_equal(memory.get(1), array)
    assert memory.get(0) is None


def test_other_bit_depth_is_not_kept():
    memory = PixelMemory(2, (1, 1, 1))
    memory.put(0, np.zeros((1, 1, 1), np.uint8))
    memory.put(1, np.full((1, 1, 1), 1000, np.uint16))
    assert memory.get(1) is None


def test_pickles_empty_and_small():
    memory = PixelMemory(1000, (32, 32, 3))
    memory.put(0, np.ones((32, 32, 3), np.uint8))
    content = pickle.dumps(memory)
    assert len(content) < 1000
    assert pickle.loads(content).get(0) is None
