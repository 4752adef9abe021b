"""Folders that commands read, each with the command that reads it and the result that it has."""

import hashlib
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from hf_latent.cli import main
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import make_autoencoder, make_denoiser

SHORT = "--train_batch_size 4 --validation_steps 9 --max_validation_samples 4 --preset tiny"
TRAIN_AUTOENCODER = f"train-autoencoder --data photos {SHORT} --max_train_steps 4"
TRAIN_DENOISER = f"train-denoiser --vae vae {SHORT} --max_train_steps 4"
RESUME = "--checkpointing_steps 2 --checkpoints_total_limit null --resume_from_checkpoint latest"
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Subject:
    """A folder that a command reads.

    Attributes:
        folder: what is attacked, relative to the working folder.
        command: the command line, run in the working folder.
        result: where the command writes; a checkpoint's run is its own result.
        pattern: the files of the result that must not differ.
    """

    folder: str
    command: str
    result: str
    pattern: str = WEIGHTS


SUBJECTS = {
    "photos": Subject("photos", f"{TRAIN_AUTOENCODER} --output_dir out", "out/model"),
    "autoencoder": Subject(
        "vae", "encode --vae vae --data photos --output_dir out --shard_rows 8", "out"
    ),
    "model": Subject(
        "model",
        "generate --model model --num_inference_steps 2 --num_images 2 --output out.png",
        "out.png",
    ),
    "cache": Subject("cache", f"{TRAIN_DENOISER} --latents cache --output_dir out", "out/model"),
    "autoencoder's run": Subject(
        "vae_run", f"{TRAIN_AUTOENCODER} --output_dir vae_run {RESUME}", "vae_run/model"
    ),
    "denoiser's run": Subject(
        "unet_run",
        f"{TRAIN_DENOISER} --data photos --output_dir unet_run {RESUME}",
        "unet_run/model",
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        status: its exit status; None if it raised another exception.
        errors: what it wrote to stderr, and the exception.
        result: SHA-256 of the files of its result, by name.
    """

    status: int | None
    errors: str
    result: dict[str, str]

    @property
    def is_refusal(self) -> bool:
        """Whether one line says why the command did nothing; a progress bar may stand beside it."""
        lines = re.split("[\r\n]", self.errors)
        return self.status == 2 and sum(line.startswith("error: ") for line in lines) == 1


def write_subjects(folder: Path, run: Callable[[str], Outcome]) -> None:
    """Write the working folder with all subjects.

    Args:
        folder: the working folder, which is empty, and the current one.
        run: runs a command line.
    """
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for i in range(40):
        pixels = generator.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / "photos" / f"{i}.png")
    vae = make_autoencoder(sample_size=32)
    vae.save_pretrained(folder / "vae")
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("flow"))
    pipeline.save_pretrained(folder / "model")
    commands = [
        "encode --vae vae --data photos --output_dir cache --shard_rows 8",
        SUBJECTS["autoencoder's run"].command,
        SUBJECTS["denoiser's run"].command,
    ]
    for command in commands:
        outcome = run(command)
        assert outcome.status == 0, outcome.errors
    for name in ("vae_run", "unet_run"):  # as if they were killed after two of four steps
        shutil.rmtree(folder / name / "model")
        shutil.rmtree(folder / name / "checkpoint-4")
        (folder / name / "report.json").unlink(missing_ok=True)


def run_command_line(command: str, result: Path, pattern: str = WEIGHTS) -> Outcome:
    """Run a command line in this process and in the current folder."""
    status, errors = 0, StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(errors):
        try:
            main(command.split())
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException as error:
            errors.write(f"{type(error).__name__}: {error}")
            status = None
    files = sorted(result.rglob(pattern)) if result.is_dir() else [result]
    hashes = {str(x): hashlib.sha256(x.read_bytes()).hexdigest() for x in files if x.exists()}
    return Outcome(status, errors.getvalue(), hashes)
