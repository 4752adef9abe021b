"""Snapshots of a training's power-function averages, from which other averages are made later.

    RUN/ema_snapshots/
        step-000500-sigma_rel-0.050.safetensors      the denoiser's weights in float32
        step-000500-sigma_rel-0.100.safetensors ...

A file's metadata has its step, the length of its average and an identifier of the training, since
another training may use the same folder later.
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

from hf_latent.errors import UserError, cause_of
from hf_latent.output import replaced_whole
from hf_latent.training.averages.power_function import PowerFunctionEMA
from hf_latent.training.run.checkpoints import SETTINGS_WITHOUT_EFFECT

FOLDER = "ema_snapshots"
SIGMA_RELS = (0.05, 0.10)  # as in Karras et al. 2024, section 3.2
# A single entry: safetensors writes several entries in a random order.
METADATA_KEY = "ema_snapshot"
_NAME = re.compile(r"step-(\d+)-sigma_rel-\d\.\d+\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A saved average.

    Attributes:
        path: the file.
        step: the last averaged step of the training.
        sigma_rel: the average's relative length, as in `gamma_from_sigma_rel`.
        training: as in `EmaSnapshots`.
    """

    path: Path
    step: int
    sigma_rel: float
    training: str


class EmaSnapshots:
    """The power-function averages of a training, and their snapshots.

    Args:
        model: the model whose weights are averaged.
        every: steps between snapshots; None for no averages.
        settings: the settings that the training started with, and the autoencoder's hash.
        accelerator: every process averages, the first one saves.

    Attributes:
        averages: by their suffix in a checkpoint, such as `ema_050`.
        training: 16 hexadecimal digits of a hash of the settings that affect the training.
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
        effective = {k: x for k, x in settings.items() if k not in SETTINGS_WITHOUT_EFFECT}
        text = json.dumps([effective], sort_keys=True)
        self.training = hashlib.sha256(text.encode()).hexdigest()[:16]
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
        """Keep the identifier of a checkpoint's training, even if settings changed since."""
        self.training = str(state["training"])

    def step(self, step: int) -> None:
        """Average the weights after a step of the training, and save a snapshot if one is due.

        Call it also after skipped steps, and before the step's checkpoint is saved.

        Args:
            step: from 1.
        """
        for average in self.averages.values():
            average.step(self.model.parameters())
        if self.every is not None and step % self.every == 0:
            self.save(step)

    def save(self, step: int) -> None:
        """Save a snapshot of each average, with `step` as its last step."""
        if not self.saves:
            return
        names = [name for name, _ in self.model.named_parameters()]
        for average in self.averages.values():
            weights = (x.detach().float().cpu().contiguous() for x in average.shadow_params)
            name = _file_name(step, average.sigma_rel)
            metadata = json.dumps(
                {"step": step, "sigma_rel": average.sigma_rel, "training": self.training}
            )
            (self.output_dir / FOLDER).mkdir(exist_ok=True)
            with replaced_whole(self.output_dir / FOLDER / name) as temporary:
                tensors = dict(zip(names, weights, strict=True))
                temporary.write_bytes(save(tensors, {METADATA_KEY: metadata}))

    def remove_after(self, step: int) -> None:
        """Remove the snapshots of steps after `step`, and those of other trainings."""
        if not self.saves:
            return
        folder = self.output_dir / FOLDER
        for path in folder.glob("step-*.safetensors"):
            named = _NAME.fullmatch(path.name)
            if named and (int(named[1]) > step or self._is_foreign(path)):
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _is_foreign(self, path: Path) -> bool:
        if not self.averages:  # this training saves no snapshots, so the others do no harm
            return False
        try:
            return _read_snapshot(path).training != self.training
        except UserError:
            return True


def _file_name(step: int, sigma_rel: float) -> str:
    return f"step-{step:06d}-sigma_rel-{sigma_rel:.3f}.safetensors"


def list_snapshots(run: Path) -> list[Snapshot]:
    """Return the snapshots in a run's folder, sorted by step and length.

    Raises:
        UserError: if a file is damaged or no snapshot.
    """
    found = [_read_snapshot(path) for path in (run / FOLDER).glob("step-*.safetensors")]
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.sigma_rel))


def _read_snapshot(path: Path) -> Snapshot:
    try:
        with safe_open(path, "pt") as file:
            values = json.loads(file.metadata()[METADATA_KEY])
        snapshot = Snapshot(
            path, int(values["step"]), float(values["sigma_rel"]), str(values["training"])
        )
        # A renamed copy would count twice.
        if path.name != (name := _file_name(snapshot.step, snapshot.sigma_rel)):
            raise ValueError(f"its content is that of {name}")
        return snapshot
    # Damaged files make the libraries raise many exception types.
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no snapshot ({cause_of(error)}): remove it, or copy it again"
        ) from error
