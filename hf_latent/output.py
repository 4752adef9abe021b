"""Files that are written whole or not at all, and JSON files."""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_latent.errors import UserError


def check_output_dir(output_dir: str | Path, overwrite: bool = False, remedy: str = "") -> Path:
    """Check that a run can write its folder, before anything long starts; create nothing.

    Args:
        output_dir: the folder; it and its parents may be missing.
        overwrite: accept a folder with files in it; the run replaces those of the same name.
        remedy: another way to mend it, for the message about a folder with files.

    Returns:
        The folder's path.

    Raises:
        UserError: if it cannot be written, or has files and overwrite is off.
    """
    path = Path(output_dir)
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"--output_dir {path} cannot be written ({error.strerror}): choose another"
        ) from error
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UserError(
            f"--output_dir {path} has files in it: choose another, {remedy}or pass "
            "--overwrite_output_dir true to replace them"
        )
    return path


@contextmanager
def replaced_whole(path: str | Path, temporary_name: str | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` if no error occurs.

    A killed run leaves the old file or the new one, never a half-written one. The next try replaces
    what a killed run left under the temporary name, so two processes must not write the same path
    at the same time. (A folder cannot be replaced in one step: if a run is killed between the two
    renames, the old folder remains as `.NAME.old`.)

    safetensors' `save_file` writes under a temporary name that it makes up: let it write into a
    folder.

    Args:
        path: the file or folder to make or replace.
        temporary_name: by default the path's name with a dot before it and `.tmp` before its
            suffix. Paths that are written one after the other may share a temporary name: a killed
            run then leaves at most one temporary file.

    Yields:
        A path beside `path`, at which nothing exists yet.
    """
    path = Path(path).resolve()
    temporary = path.with_name(temporary_name or f".{path.stem}.tmp{path.suffix}")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            old = path.with_name(f".{path.name}.old")
            if path.exists():
                _remove(old)
                path.rename(old)
            temporary.rename(path)
            _remove(old)
        else:
            temporary.replace(path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    with replaced_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole.

    Args:
        path: the file to make or replace.
        values: flat snake_case keys, with units where there are any. Numbers that are not finite
            become null, because JSON has no name for them.
    """
    write_text(path, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: if the file is missing or damaged, or holds no object.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({cause}): make or save it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object: make or save it again")
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list | tuple) else value
