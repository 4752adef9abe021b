"""Checkpoints: all that a training needs to go on as if never stopped, in safetensors and json.

    checkpoint-N/
        vae/  vae_ema/ ...      one folder a model and one of each average, in diffusers' format
        vae_optimizer.safetensors ...                        the optimizers' moments
        state.json                                           step, seconds and the rest

Order and draws of the data follow from the seed and the step, so no random state is kept. On a CPU
a training goes on bit for bit; on a GPU as far as its kernels are deterministic, which is the
user's to ask for (torch.use_deterministic_algorithms).
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole, write_json
from hf_latent.training.run.accelerator import STORAGE_SETTINGS
from hf_latent.training.run.ema import ema_weights
from hf_latent.training.run.folder import (
    TEMPORARY_CHECKPOINT,
    list_checkpoints,
    remove_checkpoint,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Settings that change nothing about what a training computes.
SETTINGS_WITHOUT_EFFECT = STORAGE_SETTINGS | {
    *("checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers", "latents"),
    *("validation_fingerprint", "validation_steps", "max_validation_samples"),
}


class HasState(Protocol):
    """Something that has a few numbers to keep, apart from weights."""

    def state(self) -> dict[str, Any]:
        """Return them, as json can hold them."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back."""


@dataclass
class TrainingState:
    """The moving parts of a training.

    Attributes:
        models: by component name, without wrappers.
        optimizers: by the name of the model that they train.
        averages: by the name of the model that they average, then by what is after it in their
            folder's name: `ema` for vae_ema.
        others: whatever has a few numbers to keep, by its name in state.json.
    """

    models: dict[str, ModelMixin]
    optimizers: dict[str, AcceleratedOptimizer]
    averages: dict[str, dict[str, EMAModel]]
    others: dict[str, HasState]

    def clip_gradients(
        self, names: list[str], max_norm: float, accelerator: Accelerator
    ) -> list[torch.Tensor]:
        """Clip the gradients of some models, each to a norm of its own.

        Args:
            names: of the models.
            max_norm: the highest norm.
            accelerator: undoes the scale of fp16 gradients first.

        Returns:
            The norms before, a scalar a model.
        """
        accelerator.unscale_gradients([self.optimizers[name] for name in names])
        return [
            torch.nn.utils.clip_grad_norm_(self.models[name].parameters(), max_norm)
            for name in names
        ]

    def step_optimizers(self, names: list[str], accelerator: Accelerator) -> None:
        """Update the weights of some models.

        With fp16 all optimizers step before the scale is updated: an update forgets which gradients
        are unscaled already, and each of Accelerate's optimizers makes one of its own.

        Args:
            names: of the models.
            accelerator: scales fp16 gradients.
        """
        if accelerator.scaler is None:
            for name in names:
                self.optimizers[name].step()
            return
        for name in names:
            accelerator.scaler.step(self.optimizers[name].optimizer)
        accelerator.scaler.update()


def _moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    moments = load_file(path)
    groups = optimizer.state_dict()["param_groups"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in trained]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        name, _, entry = key.rpartition(".")
        state.setdefault(names.index(name), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_checkpoint(
    output_dir: Path,
    step: int,
    state: TrainingState,
    settings: dict[str, Any],
    limit: int | None,
    accelerator: Accelerator,
) -> None:
    """Save a checkpoint whole, then remove the oldest beyond the limit; all processes call it.

    Args:
        output_dir: the run's folder.
        step: names the checkpoint.
        state: what is saved.
        settings: of the run, to tell a resumed one which are other.
        limit: so many checkpoints are kept; None: all.
        accelerator: its first process writes.
    """
    if accelerator.is_main_process:
        path = output_dir / f"checkpoint-{step}"
        with replaced_whole(path, TEMPORARY_CHECKPOINT) as temporary:
            temporary.mkdir()
            _save_weights(state, temporary)
            values = {
                "step": step,
                "saved_at": time.time(),
                "num_processes": accelerator.num_processes,
                "average_steps": {
                    _steps_key(folder): average.optimization_step
                    for _, folder, average in _averages(state)
                },
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                "others": {name: other.state() for name, other in state.others.items()},
                "settings": settings,
            }
            write_json(temporary / "state.json", values)
        if limit is not None:
            for old in list_checkpoints(output_dir)[:-limit]:
                remove_checkpoint(old)
    accelerator.wait_for_everyone()


def _averages(state: TrainingState) -> Iterator[tuple[str, str, EMAModel]]:
    """Yield the averages, each with the name of its model and of its folder."""
    for name, averages in state.averages.items():
        for kind, average in averages.items():
            yield name, f"{name}_{kind}", average


def _steps_key(folder: str) -> str:
    """Return what state.json calls an average: `vae` for vae_ema, as before there were others."""
    return folder.removesuffix("_ema")


def _save_weights(state: TrainingState, folder: Path) -> None:
    in_one_file = {"max_shard_size": sys.maxsize}  # as `_load_weights` reads it
    for name, model in state.models.items():
        model.save_pretrained(folder / name, **in_one_file)
    for name, average_folder, average in _averages(state):
        with ema_weights(average, state.models[name]):
            state.models[name].save_pretrained(folder / average_folder, **in_one_file)
    for name, optimizer in state.optimizers.items():
        moments = _moments(state.models[name], optimizer)
        save_file(moments, folder / f"{name}_optimizer.safetensors")


def _load_weights(state: TrainingState, folder: Path) -> None:
    for name, average_folder, average in _averages(state):
        model = state.models[name]
        model.load_state_dict(load_file(folder / average_folder / WEIGHTS))
        for shadow, parameter in zip(average.shadow_params, model.parameters(), strict=True):
            shadow.data.copy_(parameter.data)
    for name, model in state.models.items():
        model.load_state_dict(load_file(folder / name / WEIGHTS))
    for name, optimizer in state.optimizers.items():
        _load_moments(state.models[name], optimizer, folder / f"{name}_optimizer.safetensors")


def resume_training(
    checkpoint: Path | None,
    state: TrainingState,
    settings: dict[str, Any],
    accelerator: Accelerator,
) -> None:
    """Load a checkpoint; all processes call it.

    Args:
        checkpoint: its folder; None: there is none to go on from.
        state: changed in place.
        settings: of the run; those that differ from the checkpoint's are told.
        accelerator: the run's.

    Raises:
        UserError: if it is damaged, or does not fit the training.
    """
    if checkpoint is None:
        return
    try:
        values = json.loads((checkpoint / "state.json").read_text())
        _load_weights(state, checkpoint)
        for _, folder, average in _averages(state):
            average.optimization_step = values["average_steps"][_steps_key(folder)]
        for name, other in state.others.items():
            other.load_state(values["others"][name])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(values["scaler"])
        before, processes = values["settings"], values["num_processes"]
    # A damaged file makes the libraries raise nearly anything.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"{checkpoint} is damaged or of another training ({type(error).__name__}: {cause}): "
            "resume from another, with the settings that it was made with"
        ) from error
    now = json.loads(json.dumps(settings))
    now["num_processes"], before["num_processes"] = accelerator.num_processes, processes
    changed = [k for k in before if k not in SETTINGS_WITHOUT_EFFECT and now.get(k) != before[k]]
    for name in changed:
        accelerator.print(f"--{name} is {now.get(name)} from now on, {before[name]} until now")
    accelerator.print(f"resumed from {checkpoint}")
