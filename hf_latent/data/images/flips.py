"""Random flips: which images an epoch mirrors depends only on seed, epoch and image."""

from functools import lru_cache

import numpy as np

FLIP = 1


@lru_cache(maxsize=4)
def _draw(seed: int, epoch: int, count: int) -> np.ndarray:
    generator = np.random.default_rng((seed, epoch, FLIP))
    return np.frombuffer(generator.bytes(-(-count // 8)), np.uint8)


def is_flipped(seed: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Return which images are mirrored, `(n,)` bool, each with probability one half.

    Args:
        epochs: `(n,)` int64.
        indices: `(n,)` int64, each below `count`.
        count: number of all images; a bit for each is drawn at once.
    """
    flipped = np.empty(len(indices), bool)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        bits, places = _draw(seed, int(epoch), count), indices[inside]
        flipped[inside] = bits[places >> 3] >> (places & 7) & 1
    return flipped
