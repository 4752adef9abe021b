import pytest

from hf_latent.evaluation.timing import alternate, seconds_per_call


def test_sides_alternate_in_running_first_and_the_warm_up_does_not_count():
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) or len(order) for name in ("a", "b")}
    rates = alternate(sides, 3)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert rates == {"a": [3, 6, 7], "b": [4, 5, 8]}


@pytest.mark.parametrize(("seconds", "calls"), [(0.5, 1), (0.2, 1), (0.125, 3), (0.03125, 8)])
def test_short_calls_are_repeated_until_they_can_be_timed(monkeypatch, seconds, calls):
    times = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: sum(times))
    assert seconds_per_call(lambda: times.append(seconds), 0.2) == seconds
    assert len(times) == 1 + calls
