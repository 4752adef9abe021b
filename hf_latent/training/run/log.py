"""A run's logs/losses.jsonl: one line per logged training or held-out loss, with its step."""

import json
from pathlib import Path
from typing import Any

from hf_latent.errors import UserError
from hf_latent.output import full_disk_in_one_line, write_text


def append_line(output_dir: str | Path, line: dict[str, Any]) -> None:
    """Append a line: `step`, and `train_loss` or `validation_loss` with other figures."""
    path = _path(output_dir)
    with full_disk_in_one_line(path), open(path, "a") as log:
        log.write(json.dumps(line) + "\n")


def read_lines(output_dir: str | Path) -> list[dict[str, Any]]:
    """Return the lines; none if there is no log.

    Raises:
        UserError: if it is damaged.
    """
    path = _path(output_dir)
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A killed run may cut the last line.
        return [json.loads(x) for x in lines if x.endswith("\n")]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): move it away, and resume again") from error


def remove_lines_after(output_dir: str | Path, state: dict[str, Any]) -> None:
    """Remove the lines logged after a checkpoint; `state` is the checkpoint's clock state."""
    if _path(output_dir).exists():
        kept = [x for x in read_lines(output_dir) if is_logged_before(x, state)]
        write_text(_path(output_dir), "".join(json.dumps(x) + "\n" for x in kept))


def is_logged_before(line: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether a line was logged before a checkpoint, whose clock state is `state`."""
    # The validation after the last step comes after that step's checkpoint.
    if "validation_loss" in line and line["step"] == state["step"]:
        return line["step"] in dict(state["validation_losses"])
    return line["step"] <= state["step"]


def _path(output_dir: str | Path) -> Path:
    return Path(output_dir) / "logs" / "losses.jsonl"
