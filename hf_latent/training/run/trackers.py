"""The trackers of a run. One that is resumed goes on in the same, with every step once."""

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_latent.output import write_json
from hf_latent.training.run.accelerator import TrainingConfig
from hf_latent.training.run.log import is_before, read_lines


def start_trackers(
    config: TrainingConfig, checkpoint: Path | None, accelerator: Accelerator
) -> None:
    """Start the trackers of `report_to`; all processes call it.

    TensorBoard forgets what it has of the time after the checkpoint. wandb and trackio cannot, and
    are not told it again.

    Args:
        config: the run's; its losses.jsonl is as the earlier run left it.
        checkpoint: that the run goes on from; None: it begins, and so does a new run of a tracker.
        accelerator: its first process reports.
    """
    if not config.trackers():
        return
    settings: dict[str, Any] = {}
    state: dict[str, Any] = {"step": 0, "validation_losses": []}
    if accelerator.is_main_process:
        if checkpoint is not None:
            try:
                state = json.loads((checkpoint / "state.json").read_text())["others"]["clock"]
            except (OSError, ValueError, KeyError, TypeError):
                return  # loading the checkpoint will say what is wrong with it
        settings = _tracker_settings(config, checkpoint, state)
    # tensorboard takes scalars only
    shown = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str)}
    accelerator.init_trackers("hf_latent", config=shown, init_kwargs=settings)
    for line in read_lines(config.output_dir) if accelerator.is_main_process else []:
        if line["step"] == state["step"] and is_before(line, state):
            values = {key: value for key, value in line.items() if key != "step"}
            for tracker in accelerator.trackers:
                if tracker.name == "tensorboard":  # it forgets the checkpoint's step too
                    tracker.log(values, step=line["step"])


def _tracker_settings(
    config: TrainingConfig, checkpoint: Path | None, state: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what each tracker is started with, and note what it has of the time afterwards."""
    path = _path(config)
    run = {"run_id": secrets.token_hex(4), "logged_after_checkpoint": []}
    if checkpoint is not None and path.exists():
        run = json.loads(path.read_text())
        after = [
            _key(x, x["step"]) for x in read_lines(config.output_dir) if not is_before(x, state)
        ]
        known = run["logged_after_checkpoint"]
        run["logged_after_checkpoint"] = known + [x for x in after if x not in known]
    write_json(path, run)
    name = f"{Path(config.output_dir).resolve().name}-{run['run_id']}"
    return {
        # From the first start on: TensorBoard takes the second start in a folder for a resumption.
        "tensorboard": {"purge_step": state["step"]},
        "wandb": {"id": os.environ.get("WANDB_RUN_ID", run["run_id"]), "resume": "allow"},
        "trackio": {"name": name, "resume": "allow"},
    }


def log_to_trackers(
    config: TrainingConfig, accelerator: Accelerator, values: dict[str, float], step: int
) -> None:
    """Log figures to the trackers that do not have them; the first process calls it.

    Args:
        config: the run's.
        accelerator: has the trackers.
        values: the figures of a line of the loss log.
        step: of the training.
    """
    if not accelerator.trackers:
        return
    known = json.loads(_path(config).read_text())["logged_after_checkpoint"]
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" or _key(values, step) not in known:
            tracker.log(values, step=step)


def _key(values: dict[str, float], step: int) -> str:
    return f"{'validation' if 'validation_loss' in values else 'train'}-{step}"


def _path(config: TrainingConfig) -> Path:
    return Path(config.output_dir) / "logs" / "trackers.json"
