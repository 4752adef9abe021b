"""What a run's folder says of its training. The folder is not trusted: it may be anybody's."""

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_latent.command import LARGEST, read_settings
from hf_latent.errors import UserError
from hf_latent.evaluation.machine import shown_name
from hf_latent.output import read_json
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.finish.next_steps import (
    after_autoencoder,
    after_denoiser,
    after_distillation,
    resume,
)
from hf_latent.training.finish.reports import PATHS
from hf_latent.training.run.accelerator import STORAGE_SETTINGS
from hf_latent.training.run.log import read_lines
from hf_latent.training.run.pictures import picture_path

COMMANDS: dict[type, str] = {
    AutoencoderConfig: "train-autoencoder",
    DenoiserConfig: "train-denoiser",
    DistillationConfig: "distill",
}
FROM_TRAINING = ("images_seen", "seconds")  # figures that only a finished training has


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder says.

    Attributes:
        name: on the page.
        config: the settings. They name no folders of this machine.
        data: lines about the images.
        lines: the log; every value is a finite number.
        pictures: PNG files by the step of their validation, in its order.
        training: figures of the finished training, finite numbers; none before its end.
        logged_at: when the last line was logged; None if there is none.
    """

    name: str
    config: AutoencoderConfig | DenoiserConfig | DistillationConfig
    data: list[str]
    lines: list[dict[str, float]]
    pictures: dict[int, Path]
    training: dict[str, Any]
    logged_at: datetime | None

    @property
    def command(self) -> str:
        """The command that trains it."""
        return COMMANDS[type(self.config)]

    @property
    def validations(self) -> list[dict[str, float]]:
        """The log's lines of held-out figures."""
        return [line for line in self.lines if "validation_loss" in line]

    def settings(self) -> dict[str, Any]:
        """Return the settings that affect the model."""
        settings = asdict(self.config).items()
        return {name: x for name, x in settings if name not in STORAGE_SETTINGS}

    def changed_settings(self) -> dict[str, Any]:
        """Return those that are not the defaults."""
        defaults = {field.name: field.default for field in fields(self.config)}
        defaults |= asdict(self.config.training_defaults())
        return {name: x for name, x in self.settings().items() if x != defaults[name]}

    def figures(self) -> dict[str, float]:
        """Return the last value of each logged figure, and figures of a finished training."""
        last = {name: x for line in self.lines for name, x in line.items()}
        return last | {name: self.training[name] for name in FROM_TRAINING if name in self.training}

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps at which a figure was logged, and its values."""
        lines = [line for line in self.lines if name in line]
        return [line["step"] for line in lines], [line[name] for line in lines]

    def state(self) -> str:
        """Return in words how far the training is."""
        if self.logged_at is None:
            return "Nothing has been logged yet."
        step = int(self.lines[-1]["step"])
        if self.training:
            return f"Finished after {step:,} steps."
        minutes = self.config.max_train_minutes
        whole = f"{minutes:g} minutes" if minutes else f"{self.config.max_train_steps:,} steps"
        return (
            f"Not finished: step {step:,} was logged last, at {self.logged_at:%Y-%m-%d %H:%M} UTC; "
            f"the training takes {whole}."
        )

    def next_steps(self) -> str:
        """Return commands to go on with, for the folder that holds the run."""
        if not self.training:
            return resume(self.config, self.command)
        if isinstance(self.config, DenoiserConfig):
            return after_denoiser(self.config)
        if isinstance(self.config, DistillationConfig):
            return after_distillation(self.config)
        return after_autoencoder(self.config)


def read_run(folder: Path, name: str) -> RunRecord:
    """Read a run's folder, finished or not.

    Args:
        folder: of train-autoencoder, train-denoiser or distill.
        name: of the run on the page.

    Raises:
        UserError: if it is no such folder, or a file in it is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--run {folder} is no training: name the folder that has a config.yaml")
    values = read_settings(path)
    if not {"output_dir", "max_train_steps"} <= values.keys():
        raise UserError(f"{path} is not of a training: name the folder of a training")
    kind: Any = DenoiserConfig if "vae" in values else AutoencoderConfig
    kind = DistillationConfig if "teacher_num_inference_steps" in values else kind
    names = {field.name for field in fields(kind)}  # another version may have more
    place = {"output_dir": folder.resolve().name, "resume_from_checkpoint": None}
    given = {k: x for k, x in values.items() if k in PATHS and isinstance(x, str)}
    try:
        shown = {k: _show_path(x) for k, x in given.items()}
        config = kind(**{k: x for k, x in values.items() if k in names} | shown | place)
    except (UserError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not of a training ({error})") from error
    lines = _read_log(folder)
    training: dict[str, Any] = {}
    if (folder / "model" / "training.json").is_file():
        training = _keep_numbers(read_json(folder / "model" / "training.json"))
    is_finished = bool(lines) and training.get("steps") == lines[-1]["step"]
    log = folder / "logs" / "losses.jsonl"
    return RunRecord(
        name=name,
        config=config,
        data=_read_data_lines(path, {given[k]: x for k, x in shown.items()}),
        lines=lines,
        pictures=_find_pictures(folder, lines),
        training=training if is_finished else {},
        logged_at=datetime.fromtimestamp(log.stat().st_mtime, UTC) if lines else None,
    )


def _show_path(given: str) -> str:
    """Return the name of a path; of a run's model, the run's name and `model`."""
    name = shown_name(given)
    return f"{Path(given).resolve().parent.name}/{name}" if name == "model" else name


def _keep_numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers among values; a plot takes no larger ones."""
    numbers = {k: x for k, x in values.items() if type(x) in (int, float)}
    return {k: x for k, x in numbers.items() if -LARGEST <= x <= LARGEST}  # False for NaN


def _read_log(folder: Path) -> list[dict[str, float]]:
    """Return the log's lines without what is no finite number."""
    lines = read_lines(folder)
    if not all(isinstance(x, dict) and type(x.get("step")) is int for x in lines):
        raise UserError(f"{folder} has a log without steps: name the folder of a training")
    return [_keep_numbers(line) for line in lines if 0 <= line["step"] <= LARGEST]


def _read_data_lines(path: Path, shown: dict[str, str]) -> list[str]:
    """Return the comments that config.yaml begins with, with other names of paths."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("# "):
            break
        for given, name in shown.items():
            line = line.replace(given, name)
        found.append(line.removeprefix("# "))
    return found


def _find_pictures(folder: Path, lines: list[dict[str, float]]) -> dict[int, Path]:
    """Return the pictures of the logged validations: PNG files of the run itself, and no links."""
    found, place = {}, folder.resolve() / "samples"
    for step in (int(line["step"]) for line in lines if "validation_loss" in line):
        path = picture_path(folder, step)
        if path.resolve() == place / path.name and path.is_file():
            with open(path, "rb") as file:
                if file.read(8) == b"\x89PNG\r\n\x1a\n":
                    found[step] = path
    return found
