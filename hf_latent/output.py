"""Files that are written whole or not at all, and JSON files."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_latent.errors import UserError

MODEL_SETTINGS = {"model", "vae", "run", "guide", "pretrained_vae", "pretrained_unet"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_output_dir(output_dir: str | Path, overwrite: bool = False, remedy: str = "") -> Path:
    """Check that a run can write its folder, before anything long starts; create nothing.

    Args:
        output_dir: the folder; it and its parents may be missing.
        overwrite: accept a folder with files in it; the run replaces those of an earlier run.
        remedy: another way to mend it, for the message about a folder with files.

    Returns:
        The folder's path.

    Raises:
        UserError: if it cannot be written, or has files and overwrite is off.
    """
    path = Path(output_dir)
    try:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"--output_dir {path} cannot be written ({error.strerror}): choose another"
        ) from error
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UserError(
            f"--output_dir {path} has files in it: choose another, {remedy}or pass "
            "--overwrite_output_dir true to replace those of an earlier run"
        )
    return path


def check_output_file(output: Path) -> None:
    """Check that a command can write its file, before anything long starts.

    Raises:
        UserError: if the file's folder is missing or cannot be written, or if it is a folder.
    """
    if not output.parent.is_dir() or output.is_dir() or not os.access(output.parent, os.W_OK):
        raise UserError(f"--output {output} cannot be written: choose a folder that exists")


def check_models_stay(settings: Mapping[str, Any]) -> None:
    """Check that a command does not write into a model that it reads.

    Args:
        settings: a command's; those of `MODEL_SETTINGS` name one or several models, or the runs
            that trained them.

    Raises:
        UserError: if `output_dir` is the folder of such a model, or holds it.
    """
    output = Path(settings["output_dir"]).resolve()
    for name in sorted(MODEL_SETTINGS & settings.keys()):
        given = settings[name]
        for model in filter(None, given if isinstance(given, list) else [given]):
            places = [Path(model, part) for part in ("", "model", "ema_snapshots")]
            if any(x.exists() and x.resolve().is_relative_to(output) for x in places):
                raise UserError(
                    f"--output_dir {settings['output_dir']} holds --{name} {model}, which is read: "
                    "choose another"
                )


@contextmanager
def replaced_whole(
    path: str | Path, temporary_name: str | None = None, written: re.Pattern[str] | None = None
) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` if no error occurs.

    A killed run leaves the old file or the new one, never a half-written one. The next try replaces
    what a killed run left under the temporary name, so two processes must not write the same path
    at the same time, see `locks_output`. (A folder cannot be replaced in one step: if a run is
    killed between the two renames, the old folder remains as `.NAME.old`, for the next try.)

    Files and folders get the mode that the umask gives; safetensors would write 0600. Its
    `save_file` writes under a temporary name that it makes up: let it write into a folder.

    Args:
        path: the file or folder to make or replace.
        temporary_name: by default the path's name with a dot before it and `.tmp` before its
            suffix. Paths that are written one after the other may share a temporary name: a killed
            run then leaves at most one temporary file.
        written: matches the names of the files that this package writes into the folder, relative
            to it. All other files in the old folder stay.

    Yields:
        A path beside `path`, at which nothing exists yet.

    Raises:
        UserError: if the disk is full.
    """
    path = Path(path).resolve()
    temporary = path.with_name(temporary_name or f".{path.stem}.tmp{path.suffix}")
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        old.rename(path)
    _remove(temporary)
    try:
        with full_disk_in_one_line(path):
            yield temporary
            _set_modes(temporary)
        if temporary.is_dir():
            if path.exists():
                if old.is_dir():
                    _move_others(old, path, written)
                path.rename(old)
            temporary.rename(path)
            if old.is_dir():
                _move_others(old, path, written)
        else:
            temporary.replace(path)
    finally:
        _remove(temporary)


@contextmanager
def full_disk_in_one_line(path: Path) -> Iterator[None]:
    """Name the file that was written when a disk, a quota or a limit was full.

    Raises:
        UserError: in place of the errors of the system and of safetensors.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in _FULL:
            raise
        cause = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be written ({cause}): make room, and run the same command again; what "
            "was written before is kept"
        ) from error


def remove_written(folder: Path, written: re.Pattern[str]) -> None:
    """Remove the files whose names match, and the folders that are empty without them.

    Args:
        folder: it may be missing; it stays if another file is in it.
        written: matches names relative to the folder.
    """
    emptied = set()
    for path in _files(folder):
        if written.fullmatch(path.relative_to(folder).as_posix()):
            path.unlink()
            emptied |= set(path.parents) - set(folder.parents)
    for parent in sorted(emptied, reverse=True):
        with suppress(OSError):
            parent.rmdir()


def other_files(folder: Path, written: re.Pattern[str] | None) -> list[Path]:
    """Return the files below a folder that this package did not write, relative to it.

    Args:
        written: as of `replaced_whole`.
    """
    names = [path.relative_to(folder) for path in _files(folder)]
    return [name for name in names if not (written and written.fullmatch(name.as_posix()))]


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder; links are files."""
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _move_others(old: Path, new: Path, written: re.Pattern[str] | None) -> None:
    """Move the files that this package did not write to the new folder; remove the old one."""
    for name in other_files(old, written):
        if not os.path.lexists(new / name):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(new / name)
    _remove(old)


def _set_modes(path: Path) -> None:
    """Give a file, or a folder with all in it, the modes that the umask gives to new ones."""
    umask = os.umask(0o077)
    os.umask(umask)
    for part in (path, *path.rglob("*")):
        part.chmod((0o777 if part.is_dir() else 0o666) & ~umask)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
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
