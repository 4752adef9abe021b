from itertools import count

import pytest
import torch

from hf_latent.errors import UserError
from hf_latent.experiments.time_budget import SAFETY, TimeBudget


class Clock:
    """A clock that moves only by `sleep`."""

    seconds = 100.0

    def __call__(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


def test_used_and_reserved_time_is_not_left(clock):
    budget = TimeBudget(max_minutes=1.0, started=clock() - 15, now=clock)
    assert budget.minutes_left == pytest.approx(0.75)
    budget.reserve("work", lambda: clock.sleep(0.01), times=1000)
    assert budget.reserved_seconds == pytest.approx(10 * SAFETY)
    assert budget.minutes_left == pytest.approx(0.75 - (10 * SAFETY + 0.04) / 60)


def test_stages_are_timed(clock):
    budget = TimeBudget(1.0, now=clock)
    with budget.stage("nap"):
        clock.sleep(0.5)
    assert budget.stage_seconds == {"nap_seconds": pytest.approx(0.5)}


def test_too_little_time_is_refused_and_the_needed_time_named(clock):
    budget = TimeBudget(1.0, clock() - 90, clock)
    with pytest.raises(UserError, match=r"needs at least 1\.60 for the whole command \(advice\)"):
        budget.check(0.1, "advice")


def test_the_time_of_a_model_is_that_of_its_parts(pipeline):
    looks = count()
    budget = TimeBudget(10.0, now=lambda: float(next(looks)))  # a part takes a second
    images = torch.zeros(4, 1, 16, 16)
    budget.reserve_model(pipeline, images, encoded=40, decoded=20, image_steps=80)
    assert budget.reserved_seconds == pytest.approx(SAFETY * (40 / 4 + 20 / 4 + 80 / (4 * 2)))


def test_the_median_of_several_runs_counts(clock):
    budget, seconds = TimeBudget(1.0, now=clock), iter([9.0, 1.0, 5.0, 2.0])
    budget.reserve("work", lambda: clock.sleep(next(seconds)), times=4)
    assert budget.reserved == {"work": pytest.approx(SAFETY * 4 * 2.0)}


def test_a_stage_that_takes_longer_than_reserved_leaves_later_ones_more(clock):
    budget = TimeBudget(10.0, now=clock)
    budget.reserved = {"encode": 10.0, "sampling": 20.0}
    with budget.stage("encode"):
        assert budget.reserved == {"sampling": 20.0}
        clock.sleep(30)
    assert budget.reserved == {"sampling": 60.0}
    assert budget.minutes_left == pytest.approx(10 - 1.5)
    with budget.stage("sampling"):
        clock.sleep(5)  # less changes nothing
    assert budget.minutes_left == pytest.approx(10 - 35 / 60)


def test_parts_that_do_not_fit_are_left_out(clock):
    budget = TimeBudget(1.0, now=clock)
    budget.reserved = {"later": 10.0}
    done = []
    for part in budget.fitting(range(100)):
        clock.sleep(12)
        done.append(part)
    assert done == [0, 1, 2, 3]  # 48 of 50 seconds


def test_the_needed_minutes_are_returned(clock):
    budget = TimeBudget(2.0, now=clock)
    budget.reserved = {"sampling": 30.0}
    assert budget.check(0.25, "advice") == pytest.approx(0.75)
