"""A run's folder: whether it may be written, what it begins with, and the checkpoints in it."""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from hf_latent.command import dump_config
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.errors import UserError
from hf_latent.output import check_output_dir, write_text
from hf_latent.training.run.accelerator import TrainingConfig
from hf_latent.training.run.trackers import start_trackers

# Of one that is being written or removed: one name, so that a killed run leaves at most one.
TEMPORARY_CHECKPOINT = ".checkpoint.tmp"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the whole checkpoints of a run's folder, the one that was saved last at the end.

    That need not be the one of the highest step: a training may have gone on from an earlier one.
    A checkpoint gets its name once it is whole, and loses it before it is removed, so a part of
    one is never among them.
    """
    found = []
    for path in output_dir.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name):
            # What has no readable state is not whole.
            with suppress(OSError, ValueError, KeyError):
                found.append((json.loads((path / "state.json").read_text())["saved_at"], path))
    return [path for _, path in sorted(found)]


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; killed in between, no part of it is left under its name."""
    temporary = path.with_name(TEMPORARY_CHECKPOINT)
    if temporary.exists():  # of a killed run
        shutil.rmtree(temporary)
    shutil.rmtree(path.rename(temporary))


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` names.

    Args:
        output_dir: the run's folder.
        resume_from_checkpoint: the flag's value: a folder, latest, or None.

    Returns:
        Its folder; None if none is asked for, or `latest` is and there is none yet.

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
    config: TrainingConfig, accelerator: Accelerator, keep_in_memory: bool | None = None
) -> ImageSplits:
    """Open a run's images, once the run's folder is known to be writable.

    The first process checks every image, the others find its result in the cache.

    Args:
        config: the run's.
        accelerator: the run's.
        keep_in_memory: as of `open_images`; never if reading processes are used.

    Raises:
        UserError: if the folder cannot be written or an image cannot be read.
    """
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            overwrite, resume = config.overwrite_output_dir, config.resume_from_checkpoint
            check_run_folder(Path(config.output_dir), overwrite, resume)
        workers = config.dataloader_num_workers
        # Every worker would fill a memory of its own.
        keep_in_memory = False if workers else keep_in_memory
        splits = open_images(config, workers or None, keep_in_memory)
    if splits.bad_images:
        accelerator.print(f"{splits.bad_images} images that cannot be decoded are left out")
    return splits


def check_run_folder(output_dir: Path, overwrite: bool, resume_from_checkpoint: str | None) -> None:
    """Make sure that the run's folder can be written; one that is resumed may have files in it.

    Args:
        output_dir: the run's folder.
        overwrite: accept a folder with files in it.
        resume_from_checkpoint: as of `find_checkpoint`.

    Raises:
        UserError: if it cannot be written, or has files and may not be overwritten.
    """
    resumed = find_checkpoint(output_dir, resume_from_checkpoint) is not None or (
        resume_from_checkpoint == "latest" and _has_only_a_beginning(output_dir)
    )
    check_output_dir(output_dir, overwrite or resumed)


def _has_only_a_beginning(output_dir: Path) -> bool:
    """Return whether the folder has only what a run leaves if killed before a checkpoint."""
    begun = ("config.yaml", "logs", "samples", "latents", "ema_snapshots", "bad_batches")
    half_written = (".config.tmp.yaml", TEMPORARY_CHECKPOINT)
    return output_dir.is_dir() and all(x.name in begun + half_written for x in output_dir.iterdir())


def describe_counts(splits: ImageSplits) -> str:
    """Say how many images a run has."""
    return (
        f"{len(splits.train)} training images, {len(splits.validation)} held out, "
        f"{splits.bad_images} left out because they cannot be decoded"
    )


def start_run_folder(
    config: TrainingConfig, counts: str, validation_fingerprint: str, accelerator: Accelerator
) -> Path | None:
    """Make the run's folder, save the resolved configuration in it and start the trackers.

    Args:
        config: the run's.
        counts: how many images there are, in words.
        validation_fingerprint: of the held-out images.
        accelerator: its first process writes.

    Returns:
        The checkpoint to go on from; None: the run begins.

    Raises:
        UserError: if there is no such checkpoint, or the folder cannot be written, or has files
            and may not be overwritten.
    """
    output_dir, resume = Path(config.output_dir), config.resume_from_checkpoint
    checkpoint = find_checkpoint(output_dir, resume)
    if accelerator.is_main_process:
        check_run_folder(output_dir, config.overwrite_output_dir, resume)
        for name in ("logs", "samples"):
            (output_dir / name).mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            _remove_old_run(output_dir)
        resolved = dump_config(config, validation_fingerprint=validation_fingerprint)
        write_text(output_dir / "config.yaml", f"# {counts}\n{resolved}")
    start_trackers(output_dir, asdict(config), checkpoint, accelerator)
    accelerator.wait_for_everyone()
    return checkpoint


def _remove_old_run(output_dir: Path) -> None:
    """Remove what would be taken for the new run's: logs, pictures, batches and checkpoints."""
    for name in ("losses.jsonl", "trackers.json"):
        (output_dir / "logs" / name).unlink(missing_ok=True)
    for picture in (output_dir / "samples").glob("step-*.png"):
        picture.unlink()
    bad_batches = output_dir / "bad_batches"
    for batch in bad_batches.glob("step-*-rank-*.safetensors"):
        batch.unlink()
    if bad_batches.is_dir() and not any(bad_batches.iterdir()):
        bad_batches.rmdir()
    for checkpoint in list_checkpoints(output_dir):
        remove_checkpoint(checkpoint)
