"""A run's logs/losses.jsonl: a line wherever there is a loss to tell, with its step."""

import json
from pathlib import Path
from typing import Any

from hf_latent.output import write_text


def append_line(output_dir: str | Path, line: dict[str, Any]) -> None:
    """Append a line.

    Args:
        output_dir: the run's folder.
        line: `step`, and `train_loss` or `validation_loss` with figures beside it.
    """
    with open(_path(output_dir), "a") as log:
        log.write(json.dumps(line) + "\n")


def read_lines(output_dir: str | Path) -> list[dict[str, Any]]:
    """Return the lines; none if there is no log.

    Args:
        output_dir: the run's folder.
    """
    path = _path(output_dir)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(x) for x in lines if x.endswith("\n")]  # a kill may cut the last short


def remove_lines_after(output_dir: str | Path, state: dict[str, Any]) -> None:
    """Remove what was logged after a checkpoint.

    Args:
        output_dir: the run's folder.
        state: the clock's, of the checkpoint.
    """
    if _path(output_dir).exists():
        kept = [x for x in read_lines(output_dir) if is_logged_before(x, state)]
        write_text(_path(output_dir), "".join(json.dumps(x) + "\n" for x in kept))


def is_logged_before(line: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether a line was logged before a checkpoint was saved.

    Args:
        line: of the log.
        state: the clock's, of the checkpoint. At its own step only a validation can come later:
            the one after the last step.
    """
    if "validation_loss" in line and line["step"] == state["step"]:
        return line["step"] in dict(state["validation_losses"])
    return line["step"] <= state["step"]


def _path(output_dir: str | Path) -> Path:
    return Path(output_dir) / "logs" / "losses.jsonl"
