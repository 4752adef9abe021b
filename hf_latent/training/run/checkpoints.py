"""Checkpoints: everything that a training needs to resume, in safetensors and JSON.

    checkpoint-N/
        vae/  vae_ema/ ...               a folder per model and per average, in diffusers' format
        vae_optimizer.safetensors ...    the optimizers' moments
        state.json                       step, seconds and the rest, and each file's SHA-256

The order of the data and all random draws follow from seed and step, so no random state is saved.
On a CPU a resumed training equals an uninterrupted one bit for bit, on a GPU only if its kernels
are deterministic (torch.use_deterministic_algorithms).
"""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file

from hf_latent.data.shards import hash_file
from hf_latent.errors import SharedError, UserError, cause_of
from hf_latent.hub.model_files import CHECKPOINT_FILES
from hf_latent.output import read_json, replaced_whole, write_json
from hf_latent.pipeline.weights import check_finite, check_weights
from hf_latent.training.run.accelerator import STORAGE_SETTINGS, raise_everywhere
from hf_latent.training.run.ema import WeightAverage, ema_weights
from hf_latent.training.run.folder import (
    TEMPORARY_CHECKPOINT,
    list_checkpoints,
    next_order,
    remove_checkpoint,
)

logger = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Settings that do not change what a training computes.
SETTINGS_WITHOUT_EFFECT = STORAGE_SETTINGS | {
    *("checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers", "latents"),
    "latents_on_device",
    *("validation_fingerprint", "validation_steps", "max_validation_samples"),
}


class HasState(Protocol):
    """Something with a small state, besides weights, that a checkpoint keeps."""

    def state(self) -> dict[str, Any]:
        """Return the state, as JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state."""


@dataclass
class TrainingState:
    """What changes during a training.

    Attributes:
        models: by component name, without wrappers.
        optimizers: by the name of their model.
        averages: by the name of their model, then by the suffix of their folder: `ema` for vae_ema.
        others: by their name in state.json.
    """

    models: dict[str, ModelMixin]
    optimizers: dict[str, AcceleratedOptimizer]
    averages: dict[str, dict[str, WeightAverage]]
    others: dict[str, HasState]

    def clip_gradients(
        self, names: list[str], max_norm: float, accelerator: Accelerator
    ) -> list[torch.Tensor]:
        """Clip the gradients of each named model to a norm.

        Returns:
            The norms before the clipping, a scalar per model, without the scale of fp16 gradients.
        """
        accelerator.unscale_gradients([self.optimizers[name] for name in names])
        return [
            torch.nn.utils.clip_grad_norm_(self.models[name].parameters(), max_norm)
            for name in names
        ]

    def step_optimizers(
        self, names: list[str], skip: torch.Tensor, accelerator: Accelerator
    ) -> None:
        """Update the weights of the named models, whose gradients are unscaled.

        Args:
            skip: a scalar on the device; if it is 1, weights and moments stay as they are.
        """
        for name in names:
            optimizer = self.optimizers[name].optimizer
            optimizer.found_inf = skip  # read on the device by a fused step, as torch's GradScaler
            optimizer.step()
        if accelerator.scaler is not None:
            accelerator.scaler.update()


def _moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    groups = optimizer.state_dict()["param_groups"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in trained]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
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
    spared: int | None = None,
) -> None:
    """Save a checkpoint, then remove the oldest ones beyond the limit; all processes call it.

    Args:
        step: the number in the checkpoint's name.
        state: what to save.
        settings: the run's settings, with which a resumed run compares its own.
        limit: the number of checkpoints to keep; None keeps all.
        accelerator: its first process writes.
        spared: the step of a checkpoint to keep beyond the limit.

    Raises:
        SharedError: if weights are not finite or the disk is full; earlier checkpoints stay.
    """
    try:
        _check_finite(state)  # in all processes, which have the same weights
    except ValueError as error:
        raise SharedError(
            f"step {step} is not saved, because {error}: lower --learning_rate, or resume from an "
            "earlier checkpoint"
        ) from error
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            _save_state(output_dir, step, state, settings, accelerator)
            if limit is not None:
                found = list_checkpoints(output_dir)
                for old in [x for x in found if x.name != f"checkpoint-{spared}"][:-limit]:
                    remove_checkpoint(old)


def _save_state(
    output_dir: Path,
    step: int,
    state: TrainingState,
    settings: dict[str, Any],
    accelerator: Accelerator,
) -> None:
    path = output_dir / f"checkpoint-{step}"
    with replaced_whole(path, TEMPORARY_CHECKPOINT, CHECKPOINT_FILES) as temporary:
        temporary.mkdir()
        _save_weights(state, temporary)
        values = {
            "step": step,
            "order": next_order(output_dir),
            "num_processes": accelerator.num_processes,
            "average_steps": {
                key: average.optimization_step for *_, key, average in _averages(state)
            },
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            "others": {name: other.state() for name, other in state.others.items()},
            "settings": settings,
        }
        _write_state(temporary, values)


def _write_state(folder: Path, values: dict[str, Any]) -> None:
    """Write state.json with the SHA-256 of every other file, and of its own values."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    values["files"] = {x.relative_to(folder).as_posix(): hash_file(x) for x in files}
    write_json(folder / "state.json", values)
    values = read_json(folder / "state.json")  # as JSON keeps them
    write_json(folder / "state.json", values | {"sha256": _hash_values(values)})


def _hash_values(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_files(checkpoint: Path) -> None:
    """Compare a checkpoint's files with their checksums; older checkpoints have none.

    Raises:
        UserError: if a file is missing or was changed; it names the file and other checkpoints.
    """
    values = read_json(checkpoint / "state.json")
    if "saved_at" in values:  # of an older version
        return
    damaged = [] if values.pop("sha256", None) == _hash_values(values) else ["state.json"]
    # Only files found here are read: a name in state.json may lead anywhere.
    found = {x.relative_to(checkpoint).as_posix(): x for x in checkpoint.rglob("*") if x.is_file()}
    for name, sha256 in values.get("files", {}).items():
        if name not in found or hash_file(found[name]) != sha256:
            damaged.append(name)
    if damaged:
        others = [str(x) for x in list_checkpoints(checkpoint.parent) if x.name != checkpoint.name]
        remedy = f"resume from another one ({', '.join(others)})" if others else "start again"
        raise UserError(
            f"{checkpoint / damaged[0]} is damaged, its checksum differs from the one it was saved "
            f"with: {remedy}"
        )


def _averages(state: TrainingState) -> Iterator[tuple[ModelMixin, str, str, WeightAverage]]:
    """Yield each average's model, folder name, key in state.json (`vae` for vae_ema) and itself."""
    for name, averages in state.averages.items():
        for suffix, average in averages.items():
            folder = f"{name}_{suffix}"
            yield state.models[name], folder, folder.removesuffix("_ema"), average


def _save_weights(state: TrainingState, folder: Path) -> None:
    one_file = {"max_shard_size": sys.maxsize}
    for name, model in state.models.items():
        model.save_pretrained(folder / name, **one_file)
    for model, average_folder, _, average in _averages(state):
        with ema_weights(average, model):
            model.save_pretrained(folder / average_folder, **one_file)
    for name, optimizer in state.optimizers.items():
        moments = _moments(state.models[name], optimizer)
        save_file(moments, folder / f"{name}_optimizer.safetensors")


def _check_finite(state: TrainingState) -> None:
    for name, model in state.models.items():
        check_weights(name, model)
    for model, folder, _, average in _averages(state):
        names = [name for name, _ in model.named_parameters()]
        check_finite(folder, zip(names, average.shadow_params, strict=True))


def _load_weights(state: TrainingState, folder: Path) -> None:
    for model, average_folder, _, average in _averages(state):
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
    """Load a checkpoint and print the settings that changed; all processes call it.

    Nothing is written, so a refused checkpoint leaves the run's folder as it was.

    Args:
        checkpoint: its folder; None does nothing.
        state: changed in place.
        accelerator: its first process prints.

    Raises:
        SharedError: if the checkpoint is damaged or does not fit the training.
    """
    if checkpoint is None:
        return
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            check_files(checkpoint)
        try:
            values = read_json(checkpoint / "state.json")
            _load_weights(state, checkpoint)
            _check_finite(state)
            for *_, key, average in _averages(state):
                average.optimization_step = values["average_steps"][key]
            for name, other in state.others.items():
                other.load_state(values["others"][name])
            if accelerator.scaler:
                accelerator.scaler.load_state_dict(values["scaler"])
            before, processes = values["settings"], values["num_processes"]
        # Damaged files make the libraries raise many exception types.
        except Exception as error:
            raise UserError(
                f"{checkpoint} is damaged or of another training ({cause_of(error)})"
                ": resume from another, with the settings that it was made with"
            ) from error
    now = json.loads(json.dumps(settings))
    now["num_processes"], before["num_processes"] = accelerator.num_processes, processes
    changed = [k for k in before if k not in SETTINGS_WITHOUT_EFFECT and now.get(k) != before[k]]
    for name in changed:
        logger.info(f"--{name} is {now.get(name)} from now on, {before[name]} until now")
    logger.info(f"resumed from {checkpoint}")
