"""Train a denoiser on the latents of a frozen autoencoder.

Read from top to bottom: data, models, latents, optimizer, steps, save.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_latent.command import run_command
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.cache import LatentBatch
from hf_latent.lock import locks_output
from hf_latent.models.frozen import FrozenWeights, freeze, hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import create_scheduler, measure_compression
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import NoisedLatents, add_noise
from hf_latent.pipeline.conditions import Conditions, drop_conditions, null_conditions
from hf_latent.training.averages.snapshots import EmaSnapshots
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.dry_run.bare import bare_denoiser
from hf_latent.training.dry_run.estimate import end_dry_run
from hf_latent.training.latents.sources import open_latent_source
from hf_latent.training.losses import choose_timesteps, denoising_loss, normal_to_uniform
from hf_latent.training.next_steps import after_denoiser
from hf_latent.training.page.page import conclude_validation, write_page
from hf_latent.training.push import prepare_push, push_model
from hf_latent.training.reports import (
    denoiser_figures,
    portable_settings,
    save_model,
    training_figures,
)
from hf_latent.training.run.accelerator import (
    create_optimizer,
    process_rows,
    raise_everywhere,
    start_accelerator,
)
from hf_latent.training.run.batches import ShardedDraws, seed_torch
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
from hf_latent.training.start_denoiser import start_denoiser
from hf_latent.training.validation.denoiser import measure_held_out_loss, save_samples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DenoiserSummary(TrainingSummary):
    """The results of a denoiser's training.

    Attributes:
        encode_seconds: wall-clock time of encoding the images before the first step.
        encoded_images: number of those images over all processes, held-out images included.
        vae_hash_before: SHA-256 of the autoencoder's weights before the training.
        vae_hash_after: the same after the training.
    """

    encode_seconds: float
    encoded_images: int
    vae_hash_before: str
    vae_hash_after: str


def draw_batch(
    config: DenoiserConfig,
    scheduler: SchedulerMixin,
    batch: LatentBatch,
    null: Conditions,
    draws: ShardedDraws,
    place: tuple[int, int],
) -> tuple[NoisedLatents, Conditions]:
    """Draw one process's rows of a training batch.

    Each row takes its posterior sample, its noise, its timestep and whether its conditions are
    dropped from one row of standard normal values.

    Args:
        config: the distributions.
        scheduler: determines the objective.
        batch: this process's images, on the device of the draws.
        null: the null conditions of as many images.
        draws: of this process.
        place: step and micro-step, from 0.

    Returns:
        The noised latents and their conditions, some of them replaced by the null conditions.
    """
    shape = batch.posteriors.mean.shape
    values = draws.normal(place, 2 * shape[1:].numel() + 2)
    posterior_noise, noise = values[:, 2:].view(len(values), 2, *shape[1:]).unbind(1)
    timesteps = choose_timesteps(
        scheduler,
        values[:, 0],
        config.timestep_logit_mean,
        config.timestep_logit_std,
        config.timestep_sampling,
    )
    dropped = normal_to_uniform(values[:, 1]) < config.label_dropout

    latents = batch.posteriors.sample(posterior_noise)
    noised = add_noise(scheduler, latents, noise, timesteps, config.snr_gamma)
    return noised, drop_conditions(batch.conditions, null, dropped)


@locks_output
def train_denoiser(
    config: DenoiserConfig,
    splits: ImageSplits | None = None,
    stop: StopSignal | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> DenoiserSummary:
    """Train a denoiser on the latents of images, and save the pipeline.

    Args:
        config: the settings.
        splits: the images; None opens those of the settings.
        stop: ends the training on a signal: before the first step at once, later with a checkpoint.
        now: returns the time in seconds, for the time limit.

    Returns:
        The results. `output_dir/model` has the pipeline.

    Raises:
        UserError: if the settings, the images, the autoencoder or the run folder are not valid.
        SystemExit: with `stop.status`, if `stop` ended the training.
        DryRunEnd: for `config.dry_run`, before anything is encoded or written.
    """
    accelerator = start_accelerator(config)
    vae = load_autoencoder(config.vae)
    source = open_latent_source(config, accelerator, vae, splits)
    id2label = source.id2label if config.conditional else None
    num_classes = None if id2label is None else len(id2label)
    unet = start_denoiser(config, vae, source.image_shape, num_classes)
    scheduler, sampler = (
        create_scheduler(config.objective, config.zero_terminal_snr) for _ in range(2)
    )
    pipeline = LatentDiffusionPipeline(vae, unet, sampler, id2label, guidance=config.guidance)
    pipeline.set_progress_bar_config(disable=True)
    compression = measure_compression(vae, source.image_shape)
    logger.info(f"latents: {compression}")
    freeze(vae).to(accelerator.device)
    frozen_vae = FrozenWeights(vae)

    output_dir, lines = Path(config.output_dir), source.summary
    ema = create_ema(unet, config.ema_decay, accelerator.device)
    settings = asdict(config)
    identity = settings | {"vae": frozen_vae.sha256}
    every = config.ema_snapshot_steps
    snapshots = EmaSnapshots(unet, every, output_dir, identity, accelerator)
    betas = (0.9, config.adam_beta2)
    optimizer = create_optimizer(unet, config.learning_rate, config.adam_weight_decay, betas)
    model, optimizer = accelerator.prepare(unet, optimizer)
    clock = TrainingClock(config, accelerator, "denoiser", now)
    guard = NonFiniteGuard(output_dir, accelerator)
    others: dict[str, HasState] = {"clock": clock, "vae": frozen_vae, "latents": source}
    others |= {"snapshots": snapshots} if snapshots.averages else {}
    averages = {"unet": {"ema": ema, **snapshots.averages}}
    state = TrainingState({"unet": unet}, {"unet": optimizer}, averages, others)
    checkpoint = find_checkpoint(output_dir, config.resume_from_checkpoint)
    checkpoint = clock.before_decay(checkpoint)
    resume_training(checkpoint, state, settings, accelerator)
    if config.dry_run:
        bare, count = partial(bare_denoiser, scheduler), source.train_images
        end_dry_run(config, bare, state, {"vae": vae}, compression, count, None, accelerator)
    push_settings = prepare_push(config, "LatentDiffusionPipeline", accelerator)
    fingerprint = source.validation_fingerprint
    start_run_folder(config, checkpoint, lines, fingerprint, accelerator)
    snapshots.remove_after(clock.step)
    source.prepare(vae)

    rows = process_rows(config.train_batch_size, accelerator)
    draws = ShardedDraws(config.seed, "denoiser", rows, accelerator.device)
    batches = source.batches(clock.step * config.gradient_accumulation_steps)
    null = null_conditions(unet, rows.batch_size, accelerator.device)
    held_out = source.held_out()
    held_out = replace(held_out, conditions={name: held_out.conditions[name] for name in null})

    def validate() -> None:
        picture = picture_path(output_dir, clock.step)
        with clock.validation(), eval_mode(unet):
            loss, figures = measure_held_out_loss(
                unet, scheduler, held_out, rows.batch_size, config.seed
            )
            clock.check_validation_loss(loss)
            save_samples(pipeline, picture, config.seed)
            clock.log_validation_loss(loss, **figures)
            conclude_validation(output_dir)

    if stop is not None:
        stop.defer(accelerator)
    for step in clock.steps(optimizer):
        losses: list[torch.Tensor] = []
        batch: dict[str, torch.Tensor] = {}
        for micro_step in range(config.gradient_accumulation_steps):
            latents = next(batches).to(accelerator.device)
            noised, conditions = draw_batch(
                config, scheduler, latents, null, draws, (step, micro_step)
            )
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
            exit_after_checkpoint(stop, output_dir, "train-denoiser", accelerator)

    guard.catch_up()
    if stop is not None:
        stop.release()
    snapshots.save(clock.step)
    ema.copy_to(unet.parameters())
    freeze(unet)
    in_half = config.save_dtype == "float16"
    if in_half:
        unet.half().float()  # measure and show the weights that are saved
    vae_hash_after = hash_weights(vae)
    if vae_hash_after != frozen_vae.sha256:
        raise RuntimeError("the frozen autoencoder changed while the denoiser trained")
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            validate()
    summary = DenoiserSummary(
        **vars(clock.summary(output_dir / "model")),
        encode_seconds=source.encode_seconds,
        encoded_images=source.encoded_images,
        vae_hash_before=frozen_vae.sha256,
        vae_hash_after=vae_hash_after,
    )
    if accelerator.is_main_process:
        figures = {
            **training_figures(summary, accelerator),
            **denoiser_figures(config.vae, source, pipeline),
            "held_out_images": len(held_out),
            **({"ema_training": snapshots.training} if snapshots.averages else {}),
        }
        if in_half:
            unet.half()
        save_model(pipeline, output_dir, portable_settings(config), figures, "samples.png")
        write_page(output_dir)
    end_trackers(accelerator)
    push_model(push_settings)
    return summary


def run(config: DenoiserConfig) -> None:
    """Train until the end or a signal, then say where the model is and what comes next."""
    train_denoiser(config, stop=StopSignal())
    logger.info(after_denoiser(config))


if __name__ == "__main__":
    run_command(DenoiserConfig, run)
