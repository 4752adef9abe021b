"""The trackers of a run. One that is resumed goes on in the same, with every step once."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_latent.output import write_json
from hf_latent.training.run.log import is_logged_before, read_lines


def start_trackers(
    output_dir: Path, settings: dict[str, Any], checkpoint: Path | None, accelerator: Accelerator
) -> None:
    """Start the trackers of `report_to`; all processes call it.

    TensorBoard forgets what it has of the time after the checkpoint. wandb and trackio cannot, and
    are not told it again.

    Args:
        output_dir: the run's folder; its losses.jsonl is as the earlier run left it.
        settings: of the run, which the trackers show.
        checkpoint: that the run goes on from; None: it begins, and so does a new run of a tracker.
        accelerator: its first process reports.
    """
    if not accelerator.log_with:
        return
    options: dict[str, Any] = {}
    state: dict[str, Any] = {"step": 0, "validation_losses": []}
    if accelerator.is_main_process:
        if checkpoint is not None:
            try:
                state = json.loads((checkpoint / "state.json").read_text())["others"]["clock"]
            except (OSError, ValueError, KeyError, TypeError):
                return  # loading the checkpoint will say what is wrong with it
        options = _tracker_options(output_dir, checkpoint, state)
    # tensorboard takes scalars only
    shown = {k: v for k, v in settings.items() if isinstance(v, int | float | str)}
    accelerator.init_trackers("hf_latent", config=shown, init_kwargs=options)
    for line in read_lines(output_dir) if accelerator.is_main_process else []:
        if line["step"] == state["step"] and is_logged_before(line, state):
            values = {key: value for key, value in line.items() if key != "step"}
            for tracker in accelerator.trackers:
                if tracker.name == "tensorboard":  # it forgets the checkpoint's step too
                    tracker.log(values, step=line["step"])


def _tracker_options(
    output_dir: Path, checkpoint: Path | None, state: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what each tracker is started with, and note what it has of the time afterwards."""
    path = _path(output_dir)
    run = {"run_id": secrets.token_hex(4), "logged_after_checkpoint": []}
    if checkpoint is not None and path.exists():
        run = json.loads(path.read_text())
        lines = read_lines(output_dir)
        after = [_key(x, x["step"]) for x in lines if not is_logged_before(x, state)]
        known = run["logged_after_checkpoint"]
        run["logged_after_checkpoint"] = known + [x for x in after if x not in known]
    write_json(path, run)
    name = f"{output_dir.resolve().name}-{run['run_id']}"
    return {
        # From the first start on: TensorBoard takes the second start in a folder for a resumption.
        "tensorboard": {"purge_step": state["step"]},
        "wandb": {"id": os.environ.get("WANDB_RUN_ID", run["run_id"]), "resume": "allow"},
        "trackio": {"name": name, "resume": "allow"},
    }


def log_to_trackers(
    output_dir: Path, accelerator: Accelerator, values: dict[str, float], step: int
) -> None:
    """Log figures to the trackers that do not have them; the first process calls it.

    Args:
        output_dir: the run's folder.
        accelerator: has the trackers.
        values: the figures of a line of the loss log.
        step: of the training.
    """
    if not accelerator.trackers:
        return
    known = json.loads(_path(output_dir).read_text())["logged_after_checkpoint"]
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" or _key(values, step) not in known:
            tracker.log(values, step=step)


def end_trackers(accelerator: Accelerator) -> None:
    """End the trackers, once all processes are here.

    Not by Accelerate's `end_training`: a second training may need the process group.
    """
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()


def _key(values: dict[str, float], step: int) -> str:
    return f"{'validation' if 'validation_loss' in values else 'train'}-{step}"


def _path(output_dir: Path) -> Path:
    return output_dir / "logs" / "trackers.json"
