"""Timing of calls that are compared: they alternate, and short ones are repeated."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

SHORTEST_SECONDS = 0.2  # of a timed run, so that starting the clock and the device does not count


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the sides alternately; each runs first equally often.

    Args:
        sides: functions by name; each returns its rate or its seconds.
        rounds: number of runs of each side, after one for warm-up.

    Returns:
        What they returned by name, in order.
    """
    results: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in sorted(sides, reverse=turn % 2 == 0):
            result = sides[name]()
            if turn:
                results[name].append(result)
    return results


def seconds_per_call(call: Callable[[], Any], shortest: float = SHORTEST_SECONDS) -> float:
    """Return the time of a call, repeated until `shortest` seconds have passed.

    The device has done all work before the clock starts, and again before it stops.
    """
    calls, seconds = 1, 0.0
    while seconds < shortest:
        calls = max(calls + 1, int(1.2 * calls * shortest / seconds)) if seconds else calls
        _synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _synchronize()
        seconds = time.perf_counter() - start
    return seconds / calls


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def time_alternately(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of calls by name, one for each round."""
    return alternate({name: partial(seconds_per_call, x) for name, x in calls.items()}, rounds)
