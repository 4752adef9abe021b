import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.run import accelerator as run_module
from hf_latent.training.run.log import read_lines
from tests.training.run.test_log import Killed, KilledAfter

STEPS = {"max_train_steps": 8, "checkpointing_steps": 3, "validation_steps": 2}
STEPS |= {"train_batch_size": 2, "max_validation_samples": 2}


def shown_by_tensorboard(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return steps and values as TensorBoard's own reader returns them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(x.step, make_ndarray(x.tensor_proto).item()) for x in events.Tensors(tag)]


def wait_for_another_second() -> None:
    """Wait until the next second.

    TensorBoard reads its files in the order of their names. These start with the second; within a
    second, a process's tenth file would come before its second file.
    """
    before = int(time.time())
    while int(time.time()) == before:
        time.sleep(0.01)


# Between checkpoints, right after one, and after the last step before the model is saved.
@pytest.mark.parametrize("kills", [[5, 2], [4], [100], [8]])
def test_tensorboard_shows_each_step_once_after_a_resume(autoencoder_config, tmp_path, kills):
    config = autoencoder_config(**STEPS, report_to="tensorboard", resume_from_checkpoint="latest")
    for steps in kills:
        with pytest.raises(Killed):
            train_autoencoder(config, stop=KilledAfter(steps))
        wait_for_another_second()
    train_autoencoder(config)
    run = tmp_path / "autoencoder"
    names = {
        "train/loss": "train_loss",
        "train/learning_rate": "learning_rate",
        "train/gradient_norm": "gradient_norm",
        "validation/loss": "validation_loss",
        "validation/psnr_db": "psnr_db",
    }
    for tag, name in names.items():
        logged = [(x["step"], pytest.approx(x[name])) for x in read_lines(run) if name in x]
        assert shown_by_tensorboard(run / "logs" / "hf_latent", tag) == logged
    assert [step for step, _ in logged] == [2, 4, 6, 8]


def test_tensorboard_gets_the_pictures_of_validations(autoencoder_config, tmp_path):
    config = autoencoder_config(**STEPS, report_to="tensorboard")
    train_autoencoder(config)
    events = EventAccumulator(str(tmp_path / "autoencoder" / "logs" / "hf_latent"))
    events.Reload()
    logged = events.Tensors("validation/samples")
    assert [x.step for x in logged] == [2, 4, 6, 8]
    for x in logged:
        width, height, png = make_ndarray(x.tensor_proto)
        picture = Image.open(tmp_path / f"autoencoder/samples/step-{x.step:06d}.png")
        sent = Image.open(io.BytesIO(png))
        assert sent.size == picture.size == (int(width), int(height))
        assert sent.tobytes() == picture.convert("RGB").tobytes()
    tags = events.Tags()["tensors"]
    assert [x for x in tags if "images_per_second" in x] == ["train/images_per_second"]


def test_tensorboard_shows_no_steps_of_an_old_run_in_the_folder(autoencoder_config, tmp_path):
    config = autoencoder_config(**STEPS, report_to="tensorboard")
    train_autoencoder(config)
    wait_for_another_second()
    train_autoencoder(replace(config, overwrite_output_dir=True, max_train_steps=2))
    logs = tmp_path / "autoencoder" / "logs" / "hf_latent"
    assert [step for step, _ in shown_by_tensorboard(logs, "validation/loss")] == [2]


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request, monkeypatch):
    """A stand-in for a tracker that is not installed; it keeps its settings and its log."""
    module = ModuleType(request.param)
    module.starts, module.logged = [], []
    started = SimpleNamespace(
        log=lambda values, step: module.logged.append((step, next(iter(values)))),
        finish=lambda: None,
    )

    def init(**settings):
        module.starts.append(settings)
        return started

    module.init, module.Image, module.config = (
        init,
        Image.fromarray,
        SimpleNamespace(update=lambda *values, **options: None),
    )
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.setattr(run_module, "find_spec", lambda name: True)
    monkeypatch.setattr(f"accelerate.tracking.is_{request.param}_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType(request.param)])
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return module


RUN_KEYS = {"wandb": "id", "trackio": "name"}  # what tells a tracker's runs apart


def told_of(run: Path) -> list[tuple[int, str]]:
    """Return what a tracker is told of a run: steps and the names of first values, sorted."""
    told = []
    for line in read_lines(run):
        is_validation = "validation_loss" in line
        names = ["validation/loss", "validation/samples"] if is_validation else ["train/loss"]
        told += [(line["step"], x) for x in names]
    return sorted(told)


@pytest.mark.parametrize("kills", [[5, 2], [7], [100], [8]])
def test_a_resumed_run_continues_its_tracker_run_and_logs_no_step_twice(
    autoencoder_config, tmp_path, tracker, kills
):
    name = tracker.__name__
    config = autoencoder_config(**STEPS, report_to=name, resume_from_checkpoint="latest")
    for steps in kills:
        with pytest.raises(Killed):
            train_autoencoder(config, stop=KilledAfter(steps))
    train_autoencoder(config)
    assert all(start["resume"] == "allow" for start in tracker.starts)
    key = RUN_KEYS[name]
    assert set(tracker.starts[0]) == {"project", "name", key, "resume"}
    assert tracker.starts[0]["name"].startswith("autoencoder-")
    runs = [start[key] for start in tracker.starts]
    assert runs == runs[:1] * (len(kills) + 1)
    assert sorted(tracker.logged) == told_of(Path(config.output_dir))


def test_a_run_over_another_is_a_new_tracker_run_with_all_steps(
    autoencoder_config, tmp_path, tracker
):
    config = autoencoder_config(**STEPS | {"max_train_steps": 2}, report_to=tracker.__name__)
    for _ in range(2):
        train_autoencoder(replace(config, overwrite_output_dir=True))
    first, second = (start[RUN_KEYS[tracker.__name__]] for start in tracker.starts)
    assert first != second
    told = told_of(Path(config.output_dir))
    assert told and sorted(tracker.logged) == sorted(2 * told)


def test_runs_in_two_folders_from_one_checkpoint_are_two_tracker_runs(
    autoencoder_config, tmp_path, tracker
):
    config = autoencoder_config(**STEPS, report_to=tracker.__name__)
    train_autoencoder(config)
    checkpoint = str(tmp_path / "autoencoder" / "checkpoint-6")
    other = str(tmp_path / "other")
    train_autoencoder(replace(config, output_dir=other, resume_from_checkpoint=checkpoint))
    first, second = tracker.starts
    assert first != second
    assert json.loads((tmp_path / "other" / "logs" / "trackers.json").read_text())["run_id"]
