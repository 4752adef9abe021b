import numpy as np
import pytest

from hf_latent.data.images.flips import is_flipped

COUNT = 1001


def drawn(seed: int, epoch: int, count: int = COUNT) -> np.ndarray:
    indices = np.arange(count)
    return is_flipped(seed, np.full(count, epoch), indices, count)


def test_half_of_the_images_are_mirrored_in_every_epoch():
    for epoch in range(20):
        flipped = drawn(3, epoch)
        assert flipped.dtype == bool
        assert 0.42 < flipped.mean() < 0.58
    share = np.mean([drawn(3, epoch) for epoch in range(100)], 0)
    assert share.min() > 0.25 and share.max() < 0.75, "an image that is hardly ever mirrored"


def test_each_epoch_and_seed_has_another_draw():
    draws = [drawn(seed, epoch) for seed in range(3) for epoch in range(3)]
    for n, first in enumerate(draws):
        for second in draws[:n]:
            assert 0.4 < (first == second).mean() < 0.6


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
def test_any_number_of_images(count):
    draws = np.array([drawn(0, epoch, count) for epoch in range(40)])
    assert draws.shape == (40, count)
    assert (draws.any(0) & ~draws.all(0)).all()


def test_a_flip_depends_neither_on_order_nor_on_other_images():
    rng = np.random.default_rng(0)
    epochs, indices = rng.integers(5, size=300), rng.integers(COUNT, size=300)
    found = is_flipped(3, epochs, indices, COUNT)
    whole = np.array([drawn(3, epoch) for epoch in range(5)])
    assert np.array_equal(found, whole[epochs, indices])
    for epoch, index, flipped in zip(epochs[:40], indices[:40], found[:40], strict=True):
        alone = is_flipped(3, np.array([epoch]), np.array([index]), COUNT)
        assert alone.tolist() == [flipped]


def test_no_index_gives_no_flip():
    empty = np.empty(0, np.int64)
    assert is_flipped(0, empty, empty, COUNT).shape == (0,)
