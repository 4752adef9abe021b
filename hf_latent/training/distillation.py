"""Distill a trained model into a student of few steps.

The student learns the mean velocity of its teacher's trajectories over each of a few intervals of
noise levels, so that one Euler step across an interval ends where the teacher's steps end. That is
the regression of Luhman and Luhman 2021 ("Knowledge Distillation in Iterative Generative Models for
Improved Sampling Speed", equation 7) on each interval. `denoiser_loop.py` has the optimizer, the
steps and the save.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from hf_latent.command import run_command
from hf_latent.evaluation.machine import shown_name
from hf_latent.lock import locks_output
from hf_latent.models.frozen import FrozenWeights
from hf_latent.models.presets import create_student_scheduler, measure_compression
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import NoisedLatents
from hf_latent.pipeline.autoencoders import downsampling_factor, image_channels
from hf_latent.pipeline.conditions import Conditions, drop_conditions, null_conditions
from hf_latent.pipeline.samplers import noise_levels, set_inference_steps
from hf_latent.training.denoiser_loop import DenoiserTask, train_on_task
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.dry_run.bare import bare_distillation
from hf_latent.training.dry_run.estimate import end_dry_run
from hf_latent.training.finish.next_steps import after_distillation
from hf_latent.training.finish.reports import student_figures
from hf_latent.training.losses import normal_to_uniform
from hf_latent.training.run.accelerator import process_rows, start_accelerator
from hf_latent.training.run.batches import ShardedDraws, seeded_generator
from hf_latent.training.run.checkpoints import TrainingState
from hf_latent.training.run.clock import TrainingSummary
from hf_latent.training.run.stop import StopSignal
from hf_latent.training.start.denoiser import make_trainable
from hf_latent.training.teacher import Teacher

logger = logging.getLogger(__name__)


def mean_velocities(
    states: torch.Tensor, sigmas: torch.Tensor, timesteps: torch.Tensor
) -> NoisedLatents:
    """Return the targets of a student: the mean velocity of trajectories over each interval.

    An Euler step with `(states[i] - states[i + 1]) / (sigmas[i] - sigmas[i + 1])` leads from one
    state to the next.

    Args:
        states: `(n + 1, B, c, h, w)` float, the states of B trajectories at n + 1 noise levels.
        sigmas: `(n + 1,)` float, flow's noise levels, descending.
        timesteps: `(n,)` float, where each interval begins.

    Returns:
        A batch of `n * B`, the first interval of all trajectories first.
    """
    lengths = (sigmas[:-1] - sigmas[1:]).view(-1, 1, 1, 1, 1).to(states)
    targets = (states[:-1] - states[1:]) / lengths
    return NoisedLatents(
        noisy_latents=states[:-1].flatten(0, 1),
        timesteps=timesteps.repeat_interleave(states.shape[1]),
        target=targets.flatten(0, 1),
        weights=torch.ones(targets.shape[:2].numel(), device=states.device),
    )


class DistillationTask(DenoiserTask):
    """Learn the steps of a teacher; see `DenoiserTask`.

    Args:
        config: the settings.
        accelerator: of the training.

    Raises:
        UserError: as `Teacher`.
    """

    command = "distill"

    def __init__(self, config: DistillationConfig, accelerator: Accelerator):
        """Load the teacher, and copy its denoiser."""
        self.accelerator, self.steps = accelerator, config.num_inference_steps
        self.teacher = teacher = Teacher(config, accelerator.device)
        model, interval = teacher.pipeline, teacher.guidance.interval
        # A resumed training follows the same teacher, or says that it does not.
        self.config = replace(
            config,
            teacher_num_inference_steps=teacher.steps,
            guidance_scale=teacher.guidance.scale,
            guidance_interval=interval and ",".join(map(str, interval)),
        )
        self.unet = make_trainable(copy.deepcopy(model.unet), config)
        scheduler = create_student_scheduler(model.trained_scheduler)
        set_inference_steps(scheduler, self.steps, accelerator.device)
        self.sigmas, self.timesteps = scheduler.sigmas, scheduler.timesteps
        self.teacher.check_noise_levels(noise_levels(scheduler, self.timesteps))
        self.pipeline = LatentDiffusionPipeline(
            *(model.vae, self.unet, scheduler, model.config.id2label),
            guidance={},
            num_inference_steps=self.steps,
            distilled=True,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.frozen = {"vae": FrozenWeights(model.vae)}
        self.frozen["teacher"] = FrozenWeights(model.unet, "teacher")
        if model.guide_unet is not None:
            self.frozen["guide"] = FrozenWeights(model.guide_unet, "guide")
        self.states, self.resolved = {}, {}
        self.summary = [
            f"{self.steps} steps of the student, for {teacher.steps} of {teacher.sampler} of the "
            f"teacher {shown_name(config.model)}"
        ]
        self.rows = process_rows(config.train_batch_size // self.steps, accelerator)
        self.draws = ShardedDraws(config.seed, "student", self.rows, accelerator.device)
        self.latent_shape = (self.unet.config.in_channels, *model.latent_size)
        self.classes = model.num_classes or 1
        self.null = null_conditions(self.unet, self.rows.batch_size, accelerator.device)

    def end_dry_run(self, state: TrainingState) -> NoReturn:
        """Print what the training needs, and end it."""
        vae, (_, height, width) = self.pipeline.vae, self.latent_shape
        f = downsampling_factor(vae)
        shapes = measure_compression(vae, (image_channels(vae), f * height, f * width))
        steps, teacher = self.teacher.steps, self.teacher.pipeline
        bare = partial(bare_distillation, (steps, self.teacher.evaluations - steps))
        frozen = {"vae": vae, "teacher": teacher.unet, "guide": teacher.guide_unet}
        end_dry_run(self.config, bare, state, frozen, shapes, None, None, self.accelerator)

    def prepare(self, done: int) -> None:
        """Follow the teacher from held-out noise, the classes in turn."""
        self.held_out: list[tuple[torch.Tensor, Conditions]] = []
        count = self.config.max_validation_samples if self.accelerator.is_main_process else 0
        logger.info(f"following the teacher from {count:,} held-out noises")
        generator = seeded_generator(self.config.seed, "held-out noise")
        noise = torch.randn(count, *self.latent_shape, generator=generator)
        labels = torch.arange(count) % self.classes
        for rows in torch.arange(count).split(self.rows.batch_size) if count else ():
            conditions = {name: labels[rows].to(x.device) for name, x in self.null.items()}
            states = self.teacher.follow(noise[rows].to(self.accelerator.device), conditions)
            self.held_out.append((states.cpu(), conditions))

    def draw(self, step: int, micro_step: int) -> tuple[NoisedLatents, Conditions]:
        """Follow the teacher from new noise, with new labels."""
        values = self.draws.normal((step, micro_step), 2 + math.prod(self.latent_shape))
        noise = values[:, 2:].view(-1, *self.latent_shape)
        labels = (normal_to_uniform(values[:, 0]) * self.classes).long().clamp(max=self.classes - 1)
        uniform, rate = normal_to_uniform(values[:, 1]), self.config.label_dropout
        conditions = drop_conditions(dict.fromkeys(self.null, labels), self.null, uniform, rate)
        return self._intervals(self.teacher.follow(noise, conditions), conditions)

    def _intervals(
        self, states: torch.Tensor, conditions: Conditions
    ) -> tuple[NoisedLatents, Conditions]:
        """Return what is learned of trajectories, and the conditions of each interval."""
        learned = mean_velocities(states, self.sigmas, self.timesteps)
        return learned, {name: x.repeat(self.steps) for name, x in conditions.items()}

    @torch.no_grad()
    def measure(self) -> tuple[float, dict[str, float]]:
        """Measure the student on held-out noise.

        Returns:
            The mean squared error of the velocities; and that of each step, as
            `validation_loss_step_1` and so on. `distance_to_teacher` is the mean squared difference
            of the latents at the end, whose variance is about 1.
        """
        errors, distances = [], []
        for states, conditions in self.held_out:
            learned, repeated = self._intervals(states.to(self.accelerator.device), conditions)
            output = self.unet(learned.noisy_latents, learned.timesteps, **repeated).sample
            squares = (output.float() - learned.target.float()).square().mean((1, 2, 3))
            errors.append(squares.view(self.steps, -1).cpu())
            end = self.pipeline.denoise_latents(states[0], conditions=conditions or None).cpu()
            distances.append((end - states[-1]).square().mean((1, 2, 3)))
        each = torch.cat(errors, dim=1).mean(1)
        figures = {f"validation_loss_step_{i}": x for i, x in enumerate(each.tolist(), 1)}
        self.distance = figures["distance_to_teacher"] = torch.cat(distances).mean().item()
        return each.mean().item(), figures

    def figures(self) -> dict[str, Any]:
        """Return figures of the student as measured last, and of its teacher."""
        teacher = self.teacher
        return student_figures(self.config.model, teacher.pipeline, self.pipeline) | {
            "num_inference_steps": self.steps,
            "teacher_sampler": teacher.sampler,
            "teacher_num_inference_steps": teacher.steps,
            "teacher_evaluations_per_image": teacher.evaluations,
            "teacher_guidance_scale": teacher.guidance.scale,
            "teacher_guidance_interval": teacher.guidance.interval,
            "held_out_trajectories": self.config.max_validation_samples,
            "distance_to_teacher": self.distance,
        }


@locks_output
def distill_denoiser(
    config: DistillationConfig,
    stop: StopSignal | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> TrainingSummary:
    """Train a student of few steps, and save its pipeline to `output_dir/model`.

    Args:
        config: the settings.
        stop: ends the training on a signal: before the first step at once, later with a checkpoint.
        now: returns the time in seconds, for the time limit.

    Raises:
        UserError: if the settings, the teacher or the run folder are not valid.
        SystemExit: with `stop.status`, if `stop` ended the training.
        DryRunEnd: for `config.dry_run`, before anything is written.
    """
    accelerator = start_accelerator(config)
    task = DistillationTask(config, accelerator)
    return train_on_task(task.config, task, accelerator, stop, now)


def run(config: DistillationConfig) -> None:
    """Train until the end or a signal, then say where the model is and what comes next."""
    distill_denoiser(config, stop=StopSignal())
    logger.info(after_distillation(config))


if __name__ == "__main__":
    run_command(DistillationConfig, run)
