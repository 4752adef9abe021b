"""Train a denoiser, whatever it learns: optimizer, steps, save.

What it learns is its task: a denoiser learns from the latents of images (`denoiser.py`), a student
from its teacher's trajectories (`distillation.py`).
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from hf_latent.models.frozen import FrozenWeights, freeze
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import NoisedLatents
from hf_latent.pipeline.conditions import Conditions
from hf_latent.training.averages.snapshots import EmaSnapshots
from hf_latent.training.denoiser_config import DenoiserTrainingConfig
from hf_latent.training.finish.push import prepare_push, push_model
from hf_latent.training.finish.reports import portable_settings, save_model, training_figures
from hf_latent.training.losses import denoising_loss
from hf_latent.training.page.page import conclude_validation, write_page
from hf_latent.training.run.accelerator import create_optimizer, raise_everywhere
from hf_latent.training.run.batches import seed_torch
from hf_latent.training.run.checkpoints import (
    HasState,
    TrainingState,
    resume_training,
    save_checkpoint,
)
from hf_latent.training.run.clock import TrainingClock, TrainingSummary
from hf_latent.training.run.ema import create_ema, ema_weights, eval_mode
from hf_latent.training.run.folder import find_checkpoint, start_run_folder
from hf_latent.training.run.guard import NonFiniteGuard
from hf_latent.training.run.log import end_trackers
from hf_latent.training.run.pictures import picture_path
from hf_latent.training.run.stop import StopSignal, exit_after_checkpoint
from hf_latent.training.validation.denoiser import save_samples

logger = logging.getLogger(__name__)


class DenoiserTask(ABC):
    """What a denoiser learns: its batches, and its measurement.

    Attributes:
        command: that trains it, as in `hf-latent COMMAND`.
        pipeline: with the denoiser, in train mode; it is saved at the end.
        frozen: models that must not change, by name.
        states: what else a checkpoint keeps, by name.
        summary: lines about the data, for config.yaml.
        resolved: settings that config.yaml gets in place of those given.
        prompts: of the pictures of samples, a row each; None without captions.
    """

    command: str
    pipeline: LatentDiffusionPipeline
    frozen: dict[str, FrozenWeights]
    states: dict[str, HasState]
    summary: list[str]
    resolved: dict[str, Any]
    prompts: list[str] | None = None

    @abstractmethod
    def end_dry_run(self, state: TrainingState) -> NoReturn:
        """Print what the training needs, and end it."""

    @abstractmethod
    def prepare(self, done: int) -> None:
        """Prepare the first step, after the run's folder is started.

        Args:
            done: number of batches that a resumed training has had.
        """

    @abstractmethod
    def draw(self, step: int, micro_step: int) -> tuple[NoisedLatents, Conditions]:
        """Draw this process's rows of a batch, on the device, with their conditions."""

    @abstractmethod
    def measure(self) -> tuple[float, dict[str, float]]:
        """Return the held-out loss of the denoiser, and other figures by their name in the log."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Return flat figures for training.json."""


def train_on_task(
    config: DenoiserTrainingConfig,
    task: DenoiserTask,
    accelerator: Accelerator,
    stop: StopSignal | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> TrainingSummary:
    """Train the denoiser of a task, and save its pipeline to `output_dir/model`.

    Args:
        config: the settings.
        task: what it learns.
        accelerator: of the training.
        stop: ends the training on a signal: before the first step at once, later with a checkpoint.
        now: returns the time in seconds, for the time limit.

    Raises:
        UserError: if the run folder or its checkpoint is not valid.
        SystemExit: with `stop.status`, if `stop` ended the training.
        DryRunEnd: for `config.dry_run`, before anything is prepared or written.
    """
    pipeline, unet, output_dir = task.pipeline, task.pipeline.unet, Path(config.output_dir)
    ema = create_ema(unet, config.ema_decay, accelerator.device)
    settings = asdict(config)
    identity = settings | {name: frozen.sha256 for name, frozen in task.frozen.items()}
    every = config.ema_snapshot_steps
    snapshots = EmaSnapshots(unet, every, output_dir, identity, accelerator)
    betas = (0.9, config.adam_beta2)
    optimizer = create_optimizer(unet, config.learning_rate, config.adam_weight_decay, betas)
    model, optimizer = accelerator.prepare(unet, optimizer)
    clock = TrainingClock(config, accelerator, "denoiser", now)
    guard = NonFiniteGuard(output_dir, accelerator)
    others: dict[str, HasState] = {"clock": clock, **task.frozen, **task.states}
    others |= {"snapshots": snapshots} if snapshots.averages else {}
    averages = {"unet": {"ema": ema, **snapshots.averages}}
    state = TrainingState({"unet": unet}, {"unet": optimizer}, averages, others)
    checkpoint = find_checkpoint(output_dir, config.resume_from_checkpoint)
    checkpoint = clock.before_decay(checkpoint)
    resume_training(checkpoint, state, settings, accelerator)
    if config.dry_run:
        task.end_dry_run(state)
    push_settings = prepare_push(config, "LatentDiffusionPipeline", accelerator)
    start_run_folder(config, checkpoint, task.summary, task.resolved, accelerator)
    snapshots.remove_after(clock.step)
    task.prepare(clock.step * config.gradient_accumulation_steps)

    def validate() -> None:
        picture = picture_path(output_dir, clock.step)
        with clock.validation(), eval_mode(unet):
            loss, figures = task.measure()
            clock.check_validation_loss(loss)
            save_samples(pipeline, picture, config.train_batch_size, config.seed, task.prompts)
            clock.log_validation_loss(loss, **figures)
            conclude_validation(output_dir)

    if stop is not None:
        stop.defer(accelerator)
    for step in clock.steps(optimizer):
        losses: list[torch.Tensor] = []
        batch: dict[str, torch.Tensor] = {}
        for micro_step in range(config.gradient_accumulation_steps):
            noised, conditions = task.draw(step, micro_step)
            batch |= {f"{k}_{micro_step}": tensor for k, tensor in vars(noised).items()}
            if unet.config.dropout:  # other masks in each process
                seed_torch(config.seed, "dropout", step, micro_step, accelerator.process_index)
            with accelerator.accumulate(model):
                output = model(noised.noisy_latents, noised.timesteps, **conditions).sample
                loss = denoising_loss(output, noised.target, noised.weights)
                clock.log_loss(loss)
                losses.append(loss.detach())
                accelerator.backward(loss)
        norms = state.clip_gradients(["unet"], config.max_grad_norm, accelerator)
        clock.log_gradient_norm(norms[0])
        skip = guard.check(step, torch.stack(losses).sum(), norms, batch)
        state.step_optimizers(["unet"], skip, accelerator)
        ema.step(unet.parameters())
        snapshots.step(clock.step)
        optimizer.zero_grad()
        if clock.validation_is_due:
            with raise_everywhere(accelerator):
                if accelerator.is_main_process:
                    with ema_weights(ema, unet):
                        validate()
        stopping = stop is not None and stop.requested(accelerator)
        if stopping or clock.checkpoint_is_due:
            clock.log_pending_losses()
            guard.catch_up()
            limit, spared = config.checkpoints_total_limit, clock.decay_start
            save_checkpoint(output_dir, clock.step, state, settings, limit, accelerator, spared)
        if stop is not None and stopping:
            exit_after_checkpoint(stop, output_dir, task.command, accelerator)

    guard.catch_up()
    if stop is not None:
        stop.release()
    snapshots.save(clock.step)
    ema.copy_to(unet.parameters())
    freeze(unet)
    saved = [model for model in (unet, pipeline.guide_unet) if model is not None]
    in_half = config.save_dtype == "float16"
    for model in saved if in_half else ():
        model.half().float()  # measure and show the weights that are saved
    for frozen in task.frozen.values():
        frozen.check()
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            validate()
    summary = clock.summary(output_dir / "model")
    if accelerator.is_main_process:
        figures = training_figures(summary, accelerator) | task.figures()
        figures |= {"ema_training": snapshots.training} if snapshots.averages else {}
        for model in saved if in_half else ():
            model.half()
        save_model(pipeline, output_dir, portable_settings(config), figures, "samples.png")
        write_page(output_dir)
    end_trackers(accelerator)
    push_model(push_settings)
    return summary
