"""A run's folder: check it, start it, and find the checkpoints in it."""

import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_latent.command import dump_config
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.latents.manifest import CACHE_FILES
from hf_latent.errors import UserError
from hf_latent.hub.model_files import CHECKPOINT_FILES, MODEL_FILES
from hf_latent.output import (
    check_output_dir,
    other_files,
    read_json,
    remove_written,
    write_text,
)
from hf_latent.training.run.accelerator import (
    ImageTrainingConfig,
    TrainingConfig,
    first_process_first,
    raise_everywhere,
)
from hf_latent.training.run.log import remove_lines_after, start_trackers

logger = logging.getLogger(__name__)

# A checkpoint's name while it is written or removed. One name: a killed run leaves at most one.
TEMPORARY_CHECKPOINT = ".checkpoint.tmp"
# What a run logs, which a new run in its folder removes, and all files of a run.
LOGGED_FILES = re.compile(
    r"logs/(losses\.jsonl|trackers\.json)|samples/step-\d+\.png|report\.html|"
    r"bad_batches/step-\d+-rank-\d+\.safetensors"
)
RUN_FILES = re.compile(
    rf"{LOGGED_FILES.pattern}|config\.yaml|report\.json|model/({MODEL_FILES.pattern})|"
    rf"(checkpoint-\d+|\.checkpoint\.tmp)/({CHECKPOINT_FILES.pattern})|"
    rf"latents/({CACHE_FILES.pattern})",
    re.ASCII,
)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run's folder, in the order in which they were saved.

    The last one need not have the highest step, since a training can resume from an earlier one.
    A checkpoint has its name only while it is complete.
    """
    return [path for _, path in _ordered_checkpoints(output_dir)]


def next_order(output_dir: Path) -> int:
    """Return the number that orders the next checkpoint. Clocks are set back, numbers are not."""
    found = _ordered_checkpoints(output_dir)
    return 1 + (found[-1][0][0] if found else 0)


def _ordered_checkpoints(output_dir: Path) -> list[tuple[tuple[int, float], Path]]:
    """Return what orders a checkpoint, and its path; older ones have no number but a time."""
    found = []
    for path in output_dir.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name):
            # A folder without a readable state is no complete checkpoint.
            with suppress(UserError, KeyError, TypeError, ValueError):
                state = read_json(path / "state.json")
                key = (int(state["order"]), 0.0) if "order" in state else (0, state["saved_at"])
                found.append(((key[0], float(key[1])), path))
    return sorted(found)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, but no other files in its folder.

    A killed removal leaves nothing under its name, or a folder without a state.
    """
    temporary = path.with_name(TEMPORARY_CHECKPOINT)
    if temporary.exists():  # left by a killed run
        shutil.rmtree(temporary)
    if other_files(path, CHECKPOINT_FILES):
        (path / "state.json").unlink()
        remove_written(path, CHECKPOINT_FILES)
    else:
        shutil.rmtree(path.rename(temporary))


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """Return the folder of the checkpoint that `--resume_from_checkpoint` names.

    Args:
        resume_from_checkpoint: a folder, `latest` or None.

    Returns:
        The folder; None for None, and for `latest` if there is no checkpoint yet.

    Raises:
        UserError: if the named folder is no checkpoint.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume_from_checkpoint)
    if not (path / "state.json").is_file():
        raise UserError(
            f"--resume_from_checkpoint {path} is no checkpoint: name a checkpoint-N, or latest"
        )
    return path


def open_run_images(
    config: ImageTrainingConfig, accelerator: Accelerator, keep_in_memory: bool | None = None
) -> ImageSplits:
    """Check a run's folder, then open the run's images.

    Args:
        keep_in_memory: as in `open_images`. Ignored if there are reading processes, because each
            would keep its own copy.

    Raises:
        SharedError: if the folder cannot be written or an image cannot be read.
    """
    # The first process checks every image; the others find the result in the cache.
    with first_process_first(accelerator):
        if accelerator.is_main_process:
            check_run_folder(config)
        workers = config.dataloader_num_workers
        return open_images(config, workers or None, False if workers else keep_in_memory)


def check_run_folder(config: TrainingConfig) -> None:
    """Check that a run's folder can be written. That of a resumed run may have files.

    Raises:
        UserError: if it cannot be written, or has files and may not be overwritten.
    """
    output_dir, resume = Path(config.output_dir), config.resume_from_checkpoint
    resumed = find_checkpoint(output_dir, resume) is not None or (
        resume == "latest" and _is_interrupted_start(output_dir)
    )
    remedy = "pass --resume_from_checkpoint latest to continue, "
    check_output_dir(output_dir, config.overwrite_output_dir or resumed, remedy)


def _is_interrupted_start(output_dir: Path) -> bool:
    """Return whether the folder holds only what a run leaves if killed before a checkpoint."""
    started = ("config.yaml", "report.html", "logs", "samples", "latents", "ema_snapshots")
    half_written = (".config.tmp.yaml", ".report.tmp.html", TEMPORARY_CHECKPOINT, ".latents.lock")
    names = {*started, *half_written, "bad_batches"}
    return output_dir.is_dir() and all(path.name in names for path in output_dir.iterdir())


def start_run_folder(
    config: TrainingConfig,
    checkpoint: Path | None,
    summary: list[str],
    resolved: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    """Create a run's folder, save the resolved configuration in it and start the trackers.

    Args:
        checkpoint: where the run resumes from, loaded already; None for a new run.
        summary: lines about the data, with which config.yaml begins as comments.
        resolved: settings that config.yaml gets in place of those given.
        accelerator: its first process writes.

    Raises:
        SharedError: as `check_run_folder`.
    """
    output_dir, resume = Path(config.output_dir), config.resume_from_checkpoint
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            check_run_folder(config)
            if checkpoint is None:
                remove_written(output_dir, LOGGED_FILES)
                for old in list_checkpoints(output_dir):
                    remove_checkpoint(old)
            for name in ("logs", "samples"):
                (output_dir / name).mkdir(parents=True, exist_ok=True)
            comments = "".join(f"# {line}\n" for line in summary)
            write_text(output_dir / "config.yaml", comments + dump_config(config, **resolved))
            if resume and checkpoint is None:
                logger.info("no checkpoint yet: the training starts at step 0")
        start_trackers(output_dir, asdict(config), checkpoint, accelerator)
        if checkpoint is not None and accelerator.is_main_process:
            remove_lines_after(output_dir, read_json(checkpoint / "state.json")["others"]["clock"])
