import json
import math
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_latent.errors import UserError
from hf_latent.output import read_json, write_json
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.run.clock import TrainingClock
from hf_latent.training.run.learning_rate import constant_with_decay, cosine_with_warmup
from hf_latent.training.run.log import remove_lines_after


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def clock_of_seconds():
    """Return a clock that advances by a second at each reading."""
    return map(float, count()).__next__


def log_step(clock: TrainingClock, loss: float, norm: float = 1.0) -> None:
    clock.log_loss(torch.tensor(float(loss)))
    clock.log_gradient_norm(torch.tensor(norm))


def start_clock(tmp_path, now=time.perf_counter, **settings) -> TrainingClock:
    (tmp_path / "logs").mkdir(parents=True, exist_ok=True)
    shared = {"learning_rate": 1e-3, "train_batch_size": 64}
    config = AutoencoderConfig(output_dir=str(tmp_path), **shared | settings)
    return TrainingClock(config, Accelerator(), "test", now)


def test_steps_learning_rate_and_log(tmp_path, optimizer):
    clock = start_clock(tmp_path, max_train_steps=30, learning_rate=0.5, validation_steps=10)
    rates, validated = [], []
    for step in clock.steps(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        log_step(clock, step)
        if clock.validation_is_due:
            validated.append(step)
            clock.log_validation_loss(0.25)
    clock.log_validation_loss(0.125)
    assert rates == [0.5 * cosine_with_warmup(step / 30, 0.05) for step in range(30)]
    assert validated == [9, 19]
    summary = clock.summary(tmp_path / "model")
    assert summary.steps == 30
    assert summary.validation_losses == {10: 0.25, 20: 0.25, 30: 0.125}
    assert summary.train_loss == 24.5  # the mean of steps 20 to 29
    assert summary.images_per_second == pytest.approx(30 * 64 / summary.seconds, rel=0.5)
    log = [json.loads(line) for line in (tmp_path / "logs" / "losses.jsonl").open()]
    assert [line["step"] for line in log] == [10, 20, 20, 30, 30]
    assert log[1]["train_loss"] == 9.5
    assert log[1]["learning_rate"] == rates[19]
    assert "images_per_second" in log[1] and "images_per_second" not in log[0]


def test_a_time_limit_sets_the_end_and_the_learning_rate(tmp_path, optimizer):
    clock = start_clock(tmp_path, clock_of_seconds(), max_train_minutes=1.0, learning_rate=1.0)
    rates = []
    for _ in clock.steps(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
    # The clock is read once per step, and advances by a second at each reading.
    assert rates == [
        pytest.approx(cosine_with_warmup(s / 60, 0.05), abs=1e-5) for s in range(1, 60)
    ]
    assert clock.seconds == pytest.approx(60, abs=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_follow_the_time_of_the_first_one_step_later(
    tmp_path, optimizer, monkeypatch, rank
):
    sent = iter(range(1, 100))  # seconds of the first process

    def reduce(self, share, reduction):
        seconds = next(sent)
        return share if rank == 0 else share + seconds / 60

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "is_main_process", rank == 0)
    monkeypatch.setattr(Accelerator, "reduce", reduce)
    now = clock_of_seconds() if rank == 0 else lambda: 0.0
    clock = start_clock(tmp_path, now, max_train_minutes=1.0, learning_rate=1.0)
    rates = []
    for _ in clock.steps(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
    seconds = [1, *range(1, 60)]
    assert rates == [pytest.approx(cosine_with_warmup(s / 60, 0.05), abs=1e-5) for s in seconds]


def run_to(clock: TrainingClock, optimizer, last: int) -> list[float]:
    """Run up to a step and log a loss and a held-out loss in each; return the learning rates."""
    rates = []
    for step in clock.steps(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        log_step(clock, step)
        clock.log_validation_loss(step / 8)
        if clock.step == last:
            break
    return rates


def test_a_clock_resumes_from_its_state_and_removes_later_log_lines(
    tmp_path, optimizer, monkeypatch
):
    monkeypatch.setattr(TrainingClock, "LOGGING_STEPS", 1)
    whole = run_to(start_clock(tmp_path / "whole", max_train_steps=10), optimizer, 10)
    clock = start_clock(tmp_path, max_train_steps=10)
    before = run_to(clock, optimizer, 4)
    state = json.loads(json.dumps(clock.state()))
    assert state["step"] == 4
    run_to(clock, optimizer, 7)

    resumed = start_clock(tmp_path, max_train_steps=10)
    resumed.load_state(state)
    remove_lines_after(tmp_path, state)
    assert resumed.step == 4
    assert resumed.train_loss == 3
    assert resumed.validation_losses == {1: 0.0, 2: 0.125, 3: 0.25, 4: 0.375}
    assert resumed.seconds == pytest.approx(state["seconds"], abs=1)
    after = run_to(resumed, optimizer, 10)
    assert before + after == whole
    logs = [
        [json.loads(line) for line in (folder / "logs" / "losses.jsonl").open()]
        for folder in (tmp_path, tmp_path / "whole")
    ]
    for line in sum(logs, []):
        line.pop("images_per_second", None)
    assert logs[0] == logs[1]


def test_time_before_a_checkpoint_counts_for_the_limit_but_not_for_the_rate(tmp_path, optimizer):
    now = [1000.0]
    clock = start_clock(tmp_path, lambda: now[0], max_train_minutes=10.0, checkpointing_steps=50)
    clock.load_state(clock.state() | {"step": 100, "seconds": 540.0})
    assert clock.seconds == 540
    steps = 0
    for _ in clock.steps(optimizer):
        now[0] += 1.0
        steps += 1
    assert steps == 60
    assert clock.step == 160
    assert clock.images_per_second == pytest.approx(64.0)


def test_images_seen_follow_the_number_of_processes(tmp_path, optimizer, monkeypatch):
    settings = {"train_batch_size": 5, "gradient_accumulation_steps": 2}
    now = [0.0]

    def run(processes: int, steps: int, state: dict | None) -> TrainingClock:
        monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: processes))
        clock = start_clock(tmp_path, lambda: now[0], max_train_steps=steps, **settings)
        if state is not None:
            clock.load_state(state)
        for _ in clock.steps(optimizer):
            now[0] += 1.0
        return clock

    first = run(3, 4, None)
    assert first.summary(tmp_path).images_seen == 4 * 30
    assert first.images_per_second == 30
    state = json.loads(json.dumps(first.state()))
    second = run(2, 6, state)
    assert second.summary(tmp_path).images_seen == 4 * 30 + 2 * 20
    assert second.images_per_second == 20
    # Older checkpoints have no images_seen.
    del state["images_seen"]
    assert run(2, 6, state).images_seen == 6 * 20


def test_a_resumed_finished_run_has_no_rate(tmp_path, optimizer):
    clock = start_clock(tmp_path, max_train_steps=3)
    run_to(clock, optimizer, 3)
    resumed = start_clock(tmp_path, max_train_steps=3)
    resumed.load_state(json.loads(json.dumps(clock.state())))
    assert list(resumed.steps(optimizer)) == []
    resumed.log_validation_loss(0.5)
    summary = resumed.summary(tmp_path)
    assert math.isnan(summary.images_per_second)
    assert (summary.steps, summary.images_seen) == (3, 3 * 64)
    last = (tmp_path / "logs" / "losses.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == {"step": 3, "validation_loss": 0.5}


def test_the_mean_loss_ignores_values_that_are_not_finite(tmp_path, optimizer):
    clock = start_clock(tmp_path, max_train_steps=3)
    losses = iter([1.0, math.nan, 4.0])
    norms = iter([math.inf, 2.0, 6.0])
    for _ in clock.steps(optimizer):
        log_step(clock, next(losses), next(norms))
    assert clock.train_loss == 2.5
    (line,) = (tmp_path / "logs" / "losses.jsonl").open()
    assert json.loads(line)["gradient_norm"] == 4.0


@pytest.mark.parametrize(("every", "due"), [(None, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7])])
def test_checkpoints_are_due_at_intervals_and_after_the_last_step(tmp_path, optimizer, every, due):
    clock = start_clock(tmp_path, max_train_steps=7, checkpointing_steps=every)
    assert [clock.step for _ in clock.steps(optimizer) if clock.checkpoint_is_due] == due


@pytest.mark.parametrize("limit_seconds", [30, 31])
@pytest.mark.parametrize("every", [1000, 7])
def test_a_time_limit_never_ends_a_training_without_its_last_checkpoint(
    tmp_path, optimizer, every, limit_seconds
):
    # The clock advances at each reading, so the limit may pass between any two of them.
    now = clock_of_seconds()
    settings = {"max_train_minutes": limit_seconds / 60, "checkpointing_steps": every}
    clock = start_clock(tmp_path, now, **settings)
    saved = [clock.state() for _ in clock.steps(optimizer) if clock.checkpoint_is_due]
    assert saved[-1]["step"] == clock.step
    assert [x["step"] for x in saved[:-1]] == list(range(every, clock.step, every))
    # A finished run has no steps left when it is resumed.
    resumed = start_clock(tmp_path, now, **settings)
    resumed.load_state(json.loads(json.dumps(saved[-1])))
    assert list(resumed.steps(optimizer)) == []


@pytest.mark.parametrize("limit", [{"max_train_steps": 6}, {"max_train_minutes": 24 / 60}])
def test_no_validation_is_due_after_the_last_step(tmp_path, optimizer, limit):
    """The final validation follows, and would otherwise be logged twice."""
    clock = start_clock(tmp_path, clock_of_seconds(), validation_steps=1, **limit)
    due = [clock.step for _ in clock.steps(optimizer) if clock.validation_is_due]
    assert due == list(range(1, clock.step)) and clock.step > 2


def test_reserved_time_ends_the_steps_earlier_and_a_checkpoint_keeps_it(tmp_path, optimizer):
    now = [0.0]
    clock = start_clock(tmp_path, lambda: now[0], max_train_minutes=1.0, learning_rate=1.0)
    clock.reserve(20.0)
    rates = []
    for _ in clock.steps(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        now[0] += 1.0
        if clock.step == 10:
            state = json.loads(json.dumps(clock.state()))
    expected = [cosine_with_warmup(s / 40, 0.05) for s in range(40)]
    assert rates == pytest.approx(expected, abs=1e-6)
    resumed = start_clock(tmp_path, lambda: now[0], max_train_minutes=1.0, learning_rate=1.0)
    resumed.load_state(state)
    assert resumed.reserved_seconds == 20.0
    again = []
    for _ in resumed.steps(optimizer):
        again.append(optimizer.param_groups[0]["lr"])
        now[0] += 1.0
    assert again == rates[10:]
    with pytest.raises(UserError, match=r"--max_train_minutes 1 leaves no time to train.* 1\.00"):
        clock.reserve(60.0)


def test_the_bar_counts_minutes_if_they_are_limited(tmp_path, optimizer):
    now = [0.0]
    clock = start_clock(tmp_path, lambda: now[0], max_train_minutes=2.0)
    clock.reserve(30.0)
    for _ in clock.steps(optimizer):
        now[0] += 9.0
        if clock.step == 6:
            assert str(clock._bar).startswith("test:  50%|") and "0.8/1.5 minutes" in str(
                clock._bar
            )
    assert clock._bar.n == clock._bar.total == 1.5
    resumed = start_clock(tmp_path, max_train_steps=8)
    resumed.load_state(clock.state() | {"step": 6})
    assert (resumed._bar.n, resumed._bar.initial, resumed._bar.total) == (6, 6, 8)


def rates_of(clock: TrainingClock, optimizer) -> tuple[list[float], list[int]]:
    """Run to the end; return the learning rates and the steps of the checkpoints."""
    rates, saved = [], []
    for _ in clock.steps(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        if clock.checkpoint_is_due:
            saved.append(clock.step)
            folder = Path(clock.config.output_dir, f"checkpoint-{clock.step}")
            folder.mkdir(exist_ok=True)
            write_json(folder / "state.json", {"others": {"clock": clock.state()}})
    return rates, saved


CONSTANT = {"lr_scheduler": "constant_with_decay", "lr_warmup_ratio": 0.1, "lr_decay_ratio": 0.3}


def test_a_longer_training_with_decay_resumes_before_the_decay(tmp_path, optimizer, caplog):
    settings = CONSTANT | {"checkpointing_steps": 8, "learning_rate": 1.0}
    rates, saved = rates_of(start_clock(tmp_path, max_train_steps=10, **settings), optimizer)
    assert rates == pytest.approx([constant_with_decay(x / 10, 0.1, 0.3) for x in range(10)])
    assert saved == [7, 8, 10]

    def latest_of(steps: int, scheduler: str = "constant_with_decay") -> TrainingClock:
        longer = settings | {"max_train_steps": steps, "lr_scheduler": scheduler}
        return start_clock(tmp_path, resume_from_checkpoint="latest", **longer)

    last, before = tmp_path / "checkpoint-10", tmp_path / "checkpoint-7"
    assert latest_of(10).before_decay(last) == last
    assert latest_of(20, "cosine").before_decay(last) == last
    assert latest_of(20).before_decay(None) is None
    clock = latest_of(20)
    assert clock.before_decay(last) == before
    assert f"it resumes from {before}" in caplog.text
    clock.load_state(read_json(before / "state.json")["others"]["clock"])
    rates, saved = rates_of(clock, optimizer)
    assert rates == pytest.approx([constant_with_decay(x / 20, 0.1, 0.3) for x in range(7, 20)])
    assert saved == [8, 14, 16, 20]
    assert "rises" not in caplog.text


def test_a_time_limit_saves_a_checkpoint_before_the_decay_too(tmp_path, optimizer):
    settings = CONSTANT | {"checkpointing_steps": 1000, "max_train_minutes": 20 / 60}
    _, saved = rates_of(start_clock(tmp_path, clock_of_seconds(), **settings), optimizer)
    state = read_json(tmp_path / f"checkpoint-{saved[-1]}" / "state.json")["others"]["clock"]
    assert state["decay_start"] == saved[0] and len(saved) == 2
    assert saved[0] == pytest.approx(14, abs=1)
    last, before = (tmp_path / f"checkpoint-{step}" for step in reversed(saved))
    for minutes, resumed in ((20 / 60, last), (22 / 60, before)):
        longer = settings | {"max_train_minutes": minutes, "resume_from_checkpoint": "latest"}
        assert start_clock(tmp_path, **longer).before_decay(last) == resumed


@pytest.mark.parametrize("change", [{"reserved_seconds": 20.0}, {"decay_start": "../10"}])
def test_a_damaged_state_is_left_to_its_loading(tmp_path, optimizer, change):
    settings = CONSTANT | {"checkpointing_steps": 1000, "max_train_minutes": 20 / 60}
    _, saved = rates_of(start_clock(tmp_path, clock_of_seconds(), **settings), optimizer)
    for step in saved:
        path = tmp_path / f"checkpoint-{step}" / "state.json"
        state = read_json(path)
        state["others"]["clock"] |= change
        write_json(path, state)
    clock = start_clock(tmp_path, **settings, resume_from_checkpoint="latest")
    assert clock.before_decay(path.parent) == path.parent


def test_a_rise_of_the_learning_rate_is_told(tmp_path, optimizer, caplog):
    first = start_clock(tmp_path, max_train_steps=10, learning_rate=1.0)
    run_to(first, optimizer, 10)
    start_clock(tmp_path, max_train_steps=10, learning_rate=1.0).load_state(first.state())
    assert "rises" not in caplog.text
    start_clock(tmp_path, max_train_steps=20, learning_rate=1.0).load_state(first.state())
    assert "the learning rate rises again, from 0.0271 to 0.541" in caplog.text


def test_the_rate_of_a_training_that_is_made_shorter_does_not_rise(tmp_path, optimizer, caplog):
    first = start_clock(tmp_path, max_train_steps=20, learning_rate=1.0)
    run_to(first, optimizer, 20)
    start_clock(tmp_path, max_train_steps=10, learning_rate=1.0).load_state(first.state())
    assert "rises" not in caplog.text


def test_only_a_rate_with_decay_needs_a_share_for_it(tmp_path):
    start_clock(tmp_path, lr_warmup_ratio=0.9)
    with pytest.raises(UserError, match="--lr_decay_ratio"):
        start_clock(tmp_path, lr_scheduler="constant_with_decay", lr_warmup_ratio=0.9)


def test_a_constant_rate_of_an_unfinished_training_is_no_rise(tmp_path, optimizer, caplog):
    first = start_clock(tmp_path, max_train_steps=10, **CONSTANT)
    run_to(first, optimizer, 5)
    start_clock(tmp_path, max_train_steps=20, **CONSTANT).load_state(first.state())
    assert "rises" not in caplog.text
