"""Snapshots of a training's power-function averages, for averages that are made after it.

    RUN/ema_snapshots/
        step-000500-sigma_rel-0.050.safetensors      float32, named as the denoiser's weights
        step-000500-sigma_rel-0.100.safetensors ...

A file tells its step and the length of its average in its name, and again in its metadata; and of
which training it is, since the folder may see another one after it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole
from hf_latent.training.averages.power_function import PowerFunctionEMA
from hf_latent.training.run.checkpoints import SETTINGS_WITHOUT_EFFECT

FOLDER = "ema_snapshots"
SIGMA_RELS = (0.05, 0.10)  # the two of Karras et al. 2024, section 3.2
# One entry: safetensors writes several in an order that is another every time.
METADATA_KEY = "ema_snapshot"
_NAME = re.compile(r"step-(\d+)-sigma_rel-\d\.\d+\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A saved average.

    Attributes:
        path: the file.
        step: of the training, at whose end the average was saved.
        sigma_rel: its length, see `power_ema.gamma_from_sigma_rel`.
        training: which one, see `EmaSnapshots`.
    """

    path: Path
    step: int
    sigma_rel: float
    training: str


class EmaSnapshots:
    """The averages of a training from which its snapshots are saved.

    Args:
        model: whose weights are averaged.
        every: steps between snapshots; None: there are no averages.
        output_dir: the run's folder.
        settings: that the training began with, and what stands for the autoencoder.
        accelerator: every process averages, the first one saves.

    Attributes:
        averages: by what is after the model's name in a checkpoint.
        training: 16 hexadecimal digits of the settings that change what a training computes.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int | None,
        output_dir: Path,
        settings: dict[str, Any],
        accelerator: Accelerator,
    ):
        """Start the averages; see the class."""
        told = json.dumps(
            [{k: settings[k] for k in settings if k not in SETTINGS_WITHOUT_EFFECT}], sort_keys=True
        )
        self.training = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.model, self.every, self.output_dir = model, every, output_dir
        self.saves = accelerator.is_main_process
        self.averages: dict[str, PowerFunctionEMA] = {}
        if every is not None:
            for sigma_rel in SIGMA_RELS:
                average = PowerFunctionEMA(model.parameters(), sigma_rel)
                average.to(accelerator.device)
                self.averages[f"ema_{round(1000 * sigma_rel):03d}"] = average

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides the averages."""
        return {"training": self.training}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the training of a checkpoint, whatever its settings are from now on."""
        self.training = str(state["training"])

    def step(self, step: int) -> None:
        """Average the weights of a step, and save a snapshot if one is due.

        A step that left the weights as they were counts too: the averages go by the training's
        steps. Call it before a checkpoint is saved, from which this step is not done again.

        Args:
            step: of the training, the first is 1.
        """
        for average in self.averages.values():
            average.step(self.model.parameters())
        if self.every is not None and step % self.every == 0:
            self.save(step)

    def save(self, step: int) -> None:
        """Save a snapshot of each average.

        Args:
            step: of the training, the last that was averaged.
        """
        if not self.saves:
            return
        names = [name for name, _ in self.model.named_parameters()]
        for average in self.averages.values():
            weights = (x.detach().float().cpu().contiguous() for x in average.shadow_params)
            name = _file_name(step, average.sigma_rel)
            told = json.dumps(
                {"step": step, "sigma_rel": average.sigma_rel, "training": self.training}
            )
            (self.output_dir / FOLDER).mkdir(exist_ok=True)
            with replaced_whole(self.output_dir / FOLDER / name) as temporary:
                tensors = dict(zip(names, weights, strict=True))
                temporary.write_bytes(save(tensors, {METADATA_KEY: told}))

    def remove_after(self, step: int) -> None:
        """Remove the snapshots of later steps, which will be saved again, and of other trainings.

        Args:
            step: of the training, from which it goes on; 0: all are removed.
        """
        if not self.saves:
            return
        folder = self.output_dir / FOLDER
        for path in folder.glob("step-*.safetensors"):
            named = _NAME.fullmatch(path.name)
            if named and (int(named[1]) > step or self._is_anothers(path)):
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _is_anothers(self, path: Path) -> bool:
        if not self.averages:  # this one saves none that it could be mixed up with
            return False
        try:
            return _read_snapshot(path).training != self.training
        except UserError:
            return True  # a damaged one is of no use


def _file_name(step: int, sigma_rel: float) -> str:
    return f"step-{step:06d}-sigma_rel-{sigma_rel:.3f}.safetensors"


def list_snapshots(run: Path) -> list[Snapshot]:
    """Return the snapshots of a run.

    Args:
        run: its folder.

    Returns:
        By step and length, the smallest first; none if none were kept.

    Raises:
        UserError: if a file is damaged, or no snapshot.
    """
    found = [_read_snapshot(path) for path in (run / FOLDER).glob("step-*.safetensors")]
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.sigma_rel))


def _read_snapshot(path: Path) -> Snapshot:
    """Read what a snapshot tells of itself."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()[METADATA_KEY])
        snapshot = Snapshot(
            path, int(told["step"]), float(told["sigma_rel"]), str(told["training"])
        )
        if path.name != (name := _file_name(snapshot.step, snapshot.sigma_rel)):
            raise ValueError(f"by what is in it, it is {name}")  # and must not count twice
        return snapshot
    # A damaged file makes the libraries raise nearly anything.
    except Exception as error:
        cause = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged or no snapshot ({type(error).__name__}: {cause}): remove it, or "
            "copy it again"
        ) from error
