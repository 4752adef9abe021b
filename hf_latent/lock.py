"""A lock on what a command writes: two runs of one folder would break each other's files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from hf_latent.errors import UserError
from hf_latent.output import check_models_stay

Config = TypeVar("Config")
Others = ParamSpec("Others")
Result = TypeVar("Result")


def locks_output(
    command: Callable[Concatenate[Config, Others], Result],
) -> Callable[Concatenate[Config, Others], Result]:
    """Make a command hold the lock of its `output_dir`, or of its `output`, until it ends.

    Of several processes of a launch, the first one holds it. Calling the command raises UserError
    if another run holds the lock, or if `output_dir` holds a model that the command reads.
    """

    @wraps(command)
    def locked(config: Config, *args: Others.args, **kwargs: Others.kwargs) -> Result:
        settings: dict[str, Any] = vars(config)
        if "output_dir" in settings:
            check_models_stay(settings)
        output = Path(settings["output_dir" if "output_dir" in settings else "output"])
        # A command makes its folder, but no folder for its file.
        is_possible = "output_dir" in settings or output.parent.is_dir()
        is_first = os.environ.get("RANK", "0") == "0"
        with _lock(output) if is_possible and is_first else nullcontext():
            return command(config, *args, **kwargs)

    return locked


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Hold the lock of a file or folder, `.NAME.lock` beside it.

    The system releases the lock of a dead process. The lock's file is removed at the end, and so
    are the folders that were made for it, if they are still empty. Without leave to write beside
    the output there is no lock.

    Raises:
        UserError: if another run holds the lock.
    """
    path = output.resolve()
    missing = [folder for folder in path.parents if not folder.exists()]
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another run is writing to {output}: wait for its end, or choose another folder"
        ) from None
    except OSError:
        # The command itself says what is wrong with its output, if anything is.
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            # Removed first: once released it can be another run's.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
