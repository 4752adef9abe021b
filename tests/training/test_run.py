import importlib.util
import json
import math
import os
from dataclasses import replace

import pytest

from hf_latent.errors import UserError
from hf_latent.training import run as run_module
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.run import start_accelerator


def test_processes_that_accelerate_does_not_see_are_refused(autoencoder_config, monkeypatch):
    assert start_accelerator(autoencoder_config()).num_processes == int(
        os.environ.get("WORLD_SIZE", "1")
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched and Accelerate sees 1"):
        start_accelerator(autoencoder_config())


@pytest.mark.parametrize(
    ("report_to", "missing"), [("wandb", "wandb"), ("tensorboard,wandb", "wandb")]
)
def test_a_tracker_that_is_not_installed_is_named(
    autoencoder_config, tmp_path, monkeypatch, report_to, missing
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        run_module, "find_spec", lambda name: None if name == missing else find("json")
    )
    with pytest.raises(UserError, match=f"^--report_to {missing} is not installed: pip install"):
        train_autoencoder(autoencoder_config(report_to=report_to))
    assert not (tmp_path / "autoencoder").exists()


def test_an_unknown_tracker_is_refused(autoencoder_config):
    with pytest.raises(UserError, match="--report_to paper is not one of tensorboard, trackio"):
        autoencoder_config(report_to="tensorboard, paper")
    assert autoencoder_config(report_to=" tensorboard, trackio").trackers() == [
        "tensorboard",
        "trackio",
    ]
    assert autoencoder_config().trackers() == []


def test_tensorboard_gets_the_scalars_of_the_log(autoencoder_config, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = autoencoder_config(
        report_to="tensorboard",
        discriminator_weight=0.5,
        discriminator_base_channels=8,
        discriminator_num_layers=1,
    )
    train_autoencoder(config)
    logs = tmp_path / "autoencoder" / "logs"
    assert [path.name for path in logs.iterdir() if path.is_dir()] == ["hf_latent"]
    written = events.EventAccumulator(str(logs / "hf_latent")).Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in (logs / "losses.jsonl").open():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            expected.setdefault(name, []).append((step, value))
    assert {"train_loss", "validation_loss", "psnr_db", "adversarial_weight"} <= expected.keys()
    assert expected.keys() == set(written.Tags()["scalars"])
    for name, values in expected.items():
        found = [(event.step, event.value) for event in written.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in values]
        assert [value for _, value in found] == pytest.approx([value for _, value in values])


def test_a_resumed_run_keeps_its_log_and_pictures(autoencoder_config, tmp_path):
    run = tmp_path / "autoencoder"
    train_autoencoder(autoencoder_config(checkpointing_steps=2))
    log = (run / "logs" / "losses.jsonl").read_text().splitlines()
    first = (run / "samples" / "step-000002.png").stat()
    train_autoencoder(
        autoencoder_config(resume_from_checkpoint=str(run / "checkpoint-2"), max_train_steps=6)
    )
    now = (run / "logs" / "losses.jsonl").read_text().splitlines()
    kept = [line for line in log if json.loads(line)["step"] <= 2]
    assert kept
    assert now[: len(kept)] == kept
    assert [json.loads(line)["step"] for line in now[len(kept) :]] == [4, 6, 6]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-000002.png",
        "step-000004.png",
        "step-000006.png",
    ]
    assert (run / "samples" / "step-000002.png").stat() == first


def test_a_new_run_over_an_old_one_removes_what_would_be_taken_for_its_own(
    autoencoder_config, tmp_path
):
    run = tmp_path / "autoencoder"
    config = autoencoder_config(checkpointing_steps=2)
    train_autoencoder(config)
    (run / "notes.txt").write_text("mine")
    (run / "checkpoint-of-mine").mkdir()
    with pytest.raises(UserError, match="has files in it"):
        train_autoencoder(config)
    assert (run / "checkpoint-4").exists(), "a refused run removes nothing"
    train_autoencoder(
        replace(
            config,
            overwrite_output_dir=True,
            max_train_steps=1,
            checkpointing_steps=None,
            validation_steps=100,
        )
    )
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-of-mine"]
    assert (run / "notes.txt").read_text() == "mine"
    assert [path.name for path in (run / "samples").iterdir()] == ["step-000001.png"]
    steps = [json.loads(line)["step"] for line in (run / "logs" / "losses.jsonl").open()]
    assert set(steps) == {1}


def test_resuming_needs_no_leave_to_overwrite(autoencoder_config, tmp_path):
    config = autoencoder_config(checkpointing_steps=2, overwrite_output_dir=True)
    train_autoencoder(config)
    summary = train_autoencoder(
        replace(config, overwrite_output_dir=False, resume_from_checkpoint="latest")
    )
    assert summary.steps == 4
    assert all(math.isfinite(value) for value in summary.validation_losses.values())
