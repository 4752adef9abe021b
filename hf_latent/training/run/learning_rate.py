"""The learning rate's schedules, as functions of the share of a training that is done."""

import math
from typing import Literal, TypeAlias

LearningRateScheduler: TypeAlias = Literal["cosine", "constant_with_decay"]


def cosine_with_warmup(progress: float, warmup_ratio: float) -> float:
    """Return the learning rate's factor, in [0, 1]: a linear rise, then half a cosine down to 0.

    This is diffusers' `get_cosine_schedule_with_warmup` as a function of progress instead of steps,
    so that it can follow the clock (cosine: Loshchilov and Hutter 2017, equation 5).

    Args:
        progress: in [0, 1].
        warmup_ratio: share of the training that is warm-up, in [0, 1).
    """
    if progress < warmup_ratio:
        return progress / warmup_ratio
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_ratio) / (1 - warmup_ratio)))


def constant_with_decay(progress: float, warmup_ratio: float, decay_ratio: float) -> float:
    """Return the learning rate's factor, in [0, 1]: a linear rise, then 1, then a fall to 0.

    The fall is 1 minus the root of the share of it that is done (Hägele et al. 2024, section 3.2).
    This is transformers' `get_wsd_schedule` with `decay_type="1-sqrt"`.

    Args:
        progress: in [0, 1].
        warmup_ratio: share of the training that is warm-up, in [0, 1).
        decay_ratio: share of the training in which the rate falls, in [0, 1 - warmup_ratio].
    """
    if progress < warmup_ratio:
        return progress / warmup_ratio
    if progress < 1 - decay_ratio:
        return 1.0
    return 1 - math.sqrt((progress - (1 - decay_ratio)) / decay_ratio) if decay_ratio else 1.0
