"""The log of a run: logs/losses.jsonl, and the trackers, which show the same lines.

losses.jsonl has one line per logged training or held-out loss, with its step. A resumed run
continues in the same tracker run, with every step once.
"""

import json
import os
import secrets
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from hf_latent.errors import UserError
from hf_latent.output import full_disk_in_one_line, read_json, write_json, write_text
from hf_latent.training.run.pictures import picture_path


def write_line(
    output_dir: Path, accelerator: Accelerator, values: dict[str, float], step: int
) -> None:
    """Append a step's figures to losses.jsonl, and send them to the trackers that lack them.

    Only the first process calls it. A validation's picture goes to the trackers too.

    Args:
        values: `train_loss` or `validation_loss`, with other figures.
    """
    path = _losses(output_dir)
    with full_disk_in_one_line(path), open(path, "a") as log:
        log.write(json.dumps({"step": step, **values}) + "\n")
    if not accelerator.trackers:
        return
    known = read_json(_trackers(output_dir))["logged_after_checkpoint"]
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" or _key(values, step) not in known:
            _send(tracker, output_dir, values, step)


def read_lines(output_dir: Path) -> list[dict[str, Any]]:
    """Return the lines; none if there is no log.

    Raises:
        UserError: if it is damaged.
    """
    path = _losses(output_dir)
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A killed run may cut the last line.
        return [json.loads(x) for x in lines if x.endswith("\n")]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): move it away, and resume again") from error


def remove_lines_after(output_dir: Path, state: dict[str, Any]) -> None:
    """Remove the lines logged after a checkpoint; `state` is the checkpoint's clock state."""
    if _losses(output_dir).exists():
        kept = [x for x in read_lines(output_dir) if is_logged_before(x, state)]
        write_text(_losses(output_dir), "".join(json.dumps(x) + "\n" for x in kept))


def is_logged_before(line: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether a line was logged before a checkpoint, whose clock state is `state`."""
    # The validation after the last step comes after that step's checkpoint.
    if "validation_loss" in line and line["step"] == state["step"]:
        return line["step"] in dict(state["validation_losses"])
    return line["step"] <= state["step"]


def start_trackers(
    output_dir: Path, settings: dict[str, Any], checkpoint: Path | None, accelerator: Accelerator
) -> None:
    """Start the trackers of `report_to`; all processes call it.

    TensorBoard removes the steps after the checkpoint. wandb and trackio cannot, so these steps are
    not sent to them again.

    Args:
        output_dir: the run's folder, whose losses.jsonl is as the earlier run left it.
        settings: the run's settings, which the trackers show.
        checkpoint: where the run resumes from; None starts new tracker runs.
        accelerator: its first process logs.
    """
    if not accelerator.log_with:
        return
    options: dict[str, Any] = {}
    state: dict[str, Any] = {"step": 0, "validation_losses": []}
    if accelerator.is_main_process:
        if checkpoint is not None:
            state = read_json(checkpoint / "state.json")["others"]["clock"]
        options = _tracker_options(output_dir, checkpoint, state)
    # TensorBoard accepts scalars only.
    shown = {k: v for k, v in settings.items() if isinstance(v, int | float | str)}
    accelerator.init_trackers("hf_latent", config=shown, init_kwargs=options)
    # TensorBoard also removes the checkpoint's own step, so log it again.
    for line in read_lines(output_dir) if accelerator.is_main_process else []:
        if line["step"] == state["step"] and is_logged_before(line, state):
            step = line.pop("step")
            for tracker in accelerator.trackers:
                if tracker.name == "tensorboard":
                    _send(tracker, output_dir, line, step)


def _tracker_options(
    output_dir: Path, checkpoint: Path | None, state: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return each tracker's options, and save what was logged after the checkpoint."""
    path = _trackers(output_dir)
    run: dict[str, Any] = {"run_id": secrets.token_hex(4), "logged_after_checkpoint": []}
    if checkpoint is not None and path.exists():
        run = read_json(path)
        known = run["logged_after_checkpoint"]
        lines = [x for x in read_lines(output_dir) if not is_logged_before(x, state)]
        keys = [_key(line, line["step"]) for line in lines]
        run["logged_after_checkpoint"] = known + [key for key in keys if key not in known]
    write_json(path, run)
    name = f"{output_dir.resolve().name}-{run['run_id']}"
    return {
        # In a new run too: TensorBoard takes a second start in a folder for a resumed run.
        "tensorboard": {"purge_step": state["step"]},
        "wandb": {
            "name": os.environ.get("WANDB_NAME", name),
            "id": os.environ.get("WANDB_RUN_ID", run["run_id"]),
            "resume": "allow",
        },
        "trackio": {"name": name, "resume": "allow"},
    }


def _send(tracker: GeneralTracker, output_dir: Path, values: dict[str, float], step: int) -> None:
    """Log a line by grouped names, such as `train/loss`, and the picture of a validation."""
    group, picture = _group(values), picture_path(output_dir, step)
    named = {f"{group}/{name.removeprefix(f'{group}_')}": x for name, x in values.items()}
    tracker.log(named, step=step)
    if group == "validation" and picture.is_file():
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        if tracker.name == "trackio":  # accelerate cannot log its images
            sample = import_module("trackio").Image(pixels)
            tracker.log({"validation/samples": sample}, step=step)
            return
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation/samples": pixels[None]}, step=step, **layout)


def end_trackers(accelerator: Accelerator) -> None:
    """End the trackers; all processes call it.

    Accelerate's `end_training` would also end the process group, which a second training needs.
    """
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()


def _key(values: dict[str, float], step: int) -> str:
    return f"{_group(values)}-{step}"


def _group(values: dict[str, float]) -> str:
    return "validation" if "validation_loss" in values else "train"


def _losses(output_dir: Path) -> Path:
    return output_dir / "logs" / "losses.jsonl"


def _trackers(output_dir: Path) -> Path:
    return output_dir / "logs" / "trackers.json"
