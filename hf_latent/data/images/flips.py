"""Which images an epoch mirrors: drawn from (seed, epoch, image), whoever asks and in any order."""

from functools import lru_cache

import numpy as np

FLIP = 1


@lru_cache(maxsize=4)
def _draw(seed: int, epoch: int, count: int) -> np.ndarray:
    generator = np.random.default_rng((seed, epoch, FLIP))
    return np.frombuffer(generator.bytes(-(-count // 8)), np.uint8)


def is_flipped(seed: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Tell which images are mirrored, each with probability one half.

    One bit an image is drawn for a whole epoch at once.

    Args:
        seed: the run's.
        epochs: `(n,)` int64.
        indices: `(n,)` int64, each below `count`.
        count: the number of images.

    Returns:
        `(n,)` bool.
    """
    flipped = np.empty(len(indices), bool)
    for epoch in np.unique(epochs):
        there = epochs == epoch
        bits, places = _draw(seed, int(epoch), count), indices[there]
        flipped[there] = bits[places >> 3] >> (places & 7) & 1
    return flipped
