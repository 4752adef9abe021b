import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hf_latent.errors import UserError
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.run.folder import list_checkpoints


def validated_steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
    return [line["step"] for line in lines if "validation_loss" in line]


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


def test_a_new_run_over_an_old_one_removes_its_files_but_no_others(autoencoder_config, tmp_path):
    run = tmp_path / "autoencoder"
    config = autoencoder_config(checkpointing_steps=2)
    train_autoencoder(config)
    (run / "notes.txt").write_text("mine")
    (run / "checkpoint-of-mine").mkdir()
    (run / "bad_batches").mkdir()
    (run / "bad_batches" / "step-000002-rank-0.safetensors").touch()
    (run / "logs" / "trackers.json").write_text("{}")
    for mine in (".config.mine.yaml", "bad_batches/notes.txt"):
        (run / mine).touch()
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
    assert (run / ".config.mine.yaml").exists()
    assert [path.name for path in (run / "bad_batches").iterdir()] == ["notes.txt"]
    assert not (run / "logs" / "trackers.json").exists()
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


@pytest.mark.parametrize("folder_exists", [True, False])
def test_latest_starts_a_new_run_in_an_empty_folder(autoencoder_config, tmp_path, folder_exists):
    if folder_exists:
        (tmp_path / "autoencoder").mkdir()
    train_autoencoder(autoencoder_config(resume_from_checkpoint="latest", max_train_steps=1))
    assert validated_steps(tmp_path / "autoencoder") == [1]


def test_latest_does_not_overwrite_a_finished_run_without_checkpoints(autoencoder_config, tmp_path):
    run = tmp_path / "autoencoder"
    train_autoencoder(autoencoder_config())
    assert list_checkpoints(run) == []
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    config = autoencoder_config(resume_from_checkpoint="latest", seed=1)
    with pytest.raises(UserError, match=f"--output_dir {run} has files in it") as refused:
        train_autoencoder(config)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    train_autoencoder(replace(config, overwrite_output_dir=True))
    assert validated_steps(run) == [2, 4]
    weights = run / "model" / "diffusion_pytorch_model.safetensors"
    assert weights.read_bytes() != before[weights]


def test_checkpoints_are_ordered_by_their_number_and_older_ones_by_their_time(tmp_path):
    states = {
        1: '{"saved_at": 1.0}',  # as older versions saved them
        2: "{",
        3: "{}",
        4: '{"saved_at": 0.5}',
        6: '{"order": 12}',
        7: '{"order": 3, "saved_at": 99}',
        8: '{"order": "x"}',
    }
    for step, state in states.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text(state)
    (tmp_path / "checkpoint-5").mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["checkpoint-4", "checkpoint-1", "checkpoint-7", "checkpoint-6"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(autoencoder_config, tmp_path):
    run = tmp_path / "autoencoder"
    config = autoencoder_config(checkpointing_steps=2)
    train_autoencoder(config)
    (run / "checkpoint-2").rename(run / ".checkpoint.tmp")  # as if killed while writing
    for finished in ("checkpoint-4", "model"):
        shutil.rmtree(run / finished)
    (run / "report.json").unlink()
    (run / ".config.tmp.yaml").write_text("data")
    (run / "bad_batches").mkdir()
    for name in ("step-000002-rank-1.safetensors", "step-000003-rank-0.safetensors"):
        (run / "bad_batches" / name).touch()
    log = (run / "logs" / "losses.jsonl").read_text()
    with pytest.raises(UserError, match="has files in it"):
        train_autoencoder(config)
    latest = replace(config, resume_from_checkpoint="latest")
    for other in ("model", "notes.txt", "checkpoint-2"):
        (run / other).mkdir()
        with pytest.raises(UserError, match="has files in it"):
            train_autoencoder(latest)
        (run / other).rmdir()
    assert (run / "logs" / "losses.jsonl").read_text() == log
    train_autoencoder(latest)
    assert {path.name for path in run.glob("*checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert not list(run.glob(".*"))
    assert not (run / "bad_batches").exists()
    steps = [json.loads(line)["step"] for line in (run / "logs" / "losses.jsonl").open()]
    assert steps == sorted(steps)
    assert steps[0] <= 2
