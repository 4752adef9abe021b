"""Train an autoencoder.

Read from top to bottom: data, model, optimizer, steps, fold, save.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from hf_latent.command import run_command
from hf_latent.data.device import to_device
from hf_latent.data.images.open import ImageSplits, with_values_of
from hf_latent.evaluation.features.networks import load_feature_network
from hf_latent.lock import locks_output
from hf_latent.models.fold import fold_latent_scale
from hf_latent.models.frozen import freeze, hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import measure_compression
from hf_latent.output import write_json
from hf_latent.pipeline.decode import IMAGE_VALUES, shown_channels
from hf_latent.training.adversary import Adversary, check_image_size
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.dry_run.bare import bare_autoencoder
from hf_latent.training.dry_run.estimate import end_dry_run
from hf_latent.training.equivariance import choose_transform
from hf_latent.training.finish.next_steps import after_autoencoder
from hf_latent.training.finish.push import prepare_push, push_model
from hf_latent.training.finish.reports import (
    image_figures,
    portable_settings,
    save_model,
    training_figures,
)
from hf_latent.training.latents.scale import estimate_seconds, measure_latent_scale
from hf_latent.training.losses import autoencoder_losses
from hf_latent.training.page.page import conclude_validation, write_page
from hf_latent.training.run.accelerator import (
    create_optimizer,
    process_rows,
    raise_everywhere,
    start_accelerator,
)
from hf_latent.training.run.batches import ShardedDraws, global_batches, init_reader
from hf_latent.training.run.checkpoints import TrainingState, resume_training, save_checkpoint
from hf_latent.training.run.clock import TrainingClock, TrainingSummary
from hf_latent.training.run.ema import create_ema, ema_weights, eval_mode
from hf_latent.training.run.folder import (
    find_checkpoint,
    open_run_images,
    start_run_folder,
)
from hf_latent.training.run.guard import NonFiniteGuard
from hf_latent.training.run.log import end_trackers
from hf_latent.training.run.pictures import picture_path
from hf_latent.training.run.stop import StopSignal, exit_after_checkpoint
from hf_latent.training.start.autoencoder import (
    TrainableAutoencoder,
    start_autoencoder,
    start_linearly,
)
from hf_latent.training.validation.autoencoder import HeldOutFigures, validate_autoencoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderSummary(TrainingSummary):
    """The results of an autoencoder's training.

    Attributes:
        held_out: figures of the averaged weights on held-out images, before the fold.
        residual_mean: mean of the saved model's held-out latents per channel; about 0 after a fold.
        residual_std: their standard deviation per channel; about 1 after a fold.
    """

    held_out: HeldOutFigures
    residual_mean: list[float]
    residual_std: list[float]


@locks_output
def train_autoencoder(
    config: AutoencoderConfig,
    splits: ImageSplits | None = None,
    stop: StopSignal | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> AutoencoderSummary:
    """Train an autoencoder, fold the latent scale into it, and save it.

    Args:
        config: the settings.
        splits: the images; None opens those of the settings.
        stop: ends the training on a signal: before the first step at once, later with a checkpoint.
        now: returns the time in seconds, for the time limit.

    Returns:
        The results. `output_dir/model` has the model, `output_dir/report.json` the figures.

    Raises:
        UserError: if the settings, the images or the run folder are not valid.
        SystemExit: with `stop.status`, if `stop` ended the training.
        DryRunEnd: for `config.dry_run`, before anything is written.
    """
    accelerator = start_accelerator(config)
    fine_tuned = load_autoencoder(config.pretrained_vae) if config.pretrained_vae else None
    with_values = with_values_of(fine_tuned, config) if fine_tuned else config
    splits = splits or open_run_images(with_values, accelerator)
    # A resumed training then sees the values as before, or says that it does not.
    config = replace(config, value_range=splits.train.config.value_range)
    image_shape = splits.image_shape
    if config.discriminator_weight:
        check_image_size(config.discriminator_num_layers, *image_shape[1:])
    vae = start_autoencoder(config, image_shape, fine_tuned)
    if splits.values is not None:
        vae.register_to_config(**{IMAGE_VALUES: splits.values})
    is_measured = shown_channels(vae) is not None
    network = None
    if config.perceptual_network is not None:
        network = load_feature_network(config.perceptual_network, is_measured)
        network.to(accelerator.device)
    compression = measure_compression(vae, image_shape)
    logger.info(f"autoencoder: {compression}")
    output_dir, lines = Path(config.output_dir), splits.summary.lines()
    checkpoint = find_checkpoint(output_dir, config.resume_from_checkpoint)
    is_new = fine_tuned is None and checkpoint is None and not config.dry_run
    if is_new and config.initialization == "components":
        start_linearly(vae, splits.train, config.kl_weight)
    ema = create_ema(vae, config.ema_decay, accelerator.device)
    betas = (0.9, config.adam_beta2)
    optimizer = create_optimizer(vae, config.learning_rate, config.adam_weight_decay, betas)
    model, optimizer = accelerator.prepare(TrainableAutoencoder(vae), optimizer)
    clock = TrainingClock(config, accelerator, "autoencoder", now)
    guard = NonFiniteGuard(output_dir, accelerator)
    state = TrainingState({"vae": vae}, {"vae": optimizer}, {"vae": {"ema": ema}}, {"clock": clock})
    adversary = Adversary(config, image_shape[0], vae, state, accelerator)
    settings = asdict(config)
    checkpoint = clock.before_decay(checkpoint)
    resume_training(checkpoint, state, settings, accelerator)
    if config.dry_run:
        others, count = {"network": network}, len(splits.train)
        end_dry_run(
            config, bare_autoencoder, state, others, compression, count, splits.train, accelerator
        )
    push_settings = prepare_push(config, "AutoencoderKL", accelerator)
    resolved = {"validation_fingerprint": splits.validation_fingerprint}
    start_run_folder(config, checkpoint, lines, resolved, accelerator)

    rows = process_rows(config.train_batch_size, accelerator)
    draws = ShardedDraws(config.seed, "posterior", rows, accelerator.device)
    done, workers = clock.step * config.gradient_accumulation_steps, config.dataloader_num_workers
    batches = global_batches(splits.train, rows, config.seed, done, workers)
    held_out_images = splits.validation.evenly_spaced(config.max_validation_samples)
    held_out_loader: DataLoader = DataLoader(
        held_out_images, rows.batch_size, num_workers=workers, worker_init_fn=init_reader
    )
    # An encoder that is not trained keeps its latents, and so their scale.
    count = 0 if config.train_decoder_only else config.fold_samples or len(splits.train)
    measured_on = splits.train.evenly_spaced(count)
    if config.max_train_minutes and clock.reserved_seconds is None:
        count = len(measured_on) + len(held_out_images)
        seconds = estimate_seconds(vae, splits.train, count, config, accelerator, now)
        clock.reserve(seconds)
        minutes = config.max_train_minutes - seconds / 60
        logger.info(
            f"{minutes:.2f} minutes of training, then {seconds / 60:.2f} to measure the latent "
            f"scale on {count:,} images"
        )
    previous: HeldOutFigures | None = None

    def validate() -> HeldOutFigures:
        nonlocal previous
        picture = picture_path(output_dir, clock.step)
        with clock.validation(), eval_mode(vae):
            figures = validate_autoencoder(
                vae, held_out_loader, config.reconstruction_loss, picture, network, previous
            )
            clock.check_validation_loss(figures.loss)
            clock.log_validation_loss(figures.loss, **figures.scalars(), **adversary.figures())
            conclude_validation(output_dir)
        previous = figures
        return figures

    if stop is not None:
        stop.defer(accelerator)
    for step in clock.steps(*state.optimizers.values()):
        trained = ["vae", "discriminator"] if adversary.is_active(step) else ["vae"]
        losses: list[torch.Tensor] = []
        batch: dict[str, torch.Tensor] = {}
        for micro_step in range(config.gradient_accumulation_steps):
            images = to_device(next(batches)["images"], accelerator.device)
            noise = draws.normal((step, micro_step), *compression.latent_shape)
            batch |= {f"images_{micro_step}": images, f"noise_{micro_step}": noise}
            with accelerator.accumulate(model, *adversary.wrapped):
                transform = None
                if config.equivariance_weight:
                    transform = choose_transform(config.seed, step, micro_step)
                output = model(images, noise, transform)
                fidelity, loss = autoencoder_losses(
                    config, output, images, transform, network, is_measured
                )
                clock.log_loss(loss)
                losses.append(loss.detach())
                adversarial = adversary.adversarial_loss(output.images, fidelity, step)
                accelerator.backward(loss + adversarial)
                if adversary.is_active(step):
                    discriminator_loss = adversary.discriminator_loss(images, output.images)
                    accelerator.backward(discriminator_loss)
                    losses.append(discriminator_loss.detach())
        norms = state.clip_gradients(trained, config.max_grad_norm, accelerator)
        clock.log_gradient_norm(norms[0])
        skip = guard.check(step, torch.stack(losses).sum(), norms, batch)
        state.step_optimizers(trained, skip, accelerator)
        ema.step(vae.parameters())
        adversary.update_weight(step)
        for name in trained:
            state.optimizers[name].zero_grad()
        if clock.validation_is_due:
            with raise_everywhere(accelerator):
                if accelerator.is_main_process:
                    with ema_weights(ema, vae):
                        validate()
        stopping = stop is not None and stop.requested(accelerator)
        if stopping or clock.checkpoint_is_due:
            clock.log_pending_losses()
            guard.catch_up()
            limit, spared = config.checkpoints_total_limit, clock.decay_start
            save_checkpoint(output_dir, clock.step, state, settings, limit, accelerator, spared)
        if stop is not None and stopping:
            exit_after_checkpoint(stop, output_dir, "train-autoencoder", accelerator)

    guard.catch_up()
    if stop is not None:
        stop.release()
    ema.copy_to(vae.parameters())
    freeze(vae)
    with raise_everywhere(accelerator):
        measured = [validate() if accelerator.is_main_process else None]
    (held_out,) = broadcast_object_list(measured)
    if measured_on:
        logger.info(f"measuring the latent scale on {len(measured_on):,} training images")
        vae = fold_latent_scale(vae, measure_latent_scale(vae, measured_on, config, accelerator))
    residual = measure_latent_scale(vae, held_out_images, config, accelerator)
    summary = AutoencoderSummary(
        **vars(clock.summary(output_dir / "model")),
        held_out=held_out,
        residual_mean=residual.mean.tolist(),
        residual_std=residual.std.tolist(),
    )
    if accelerator.is_main_process:
        figures = {
            **training_figures(summary, accelerator),
            **image_figures(config.data, splits, compression),
            **{f"held_out_{name}": value for name, value in held_out.scalars().items()},
            "residual_mean": summary.residual_mean,
            "residual_std": summary.residual_std,
            "vae_weights_sha256": hash_weights(vae),
        }
        save_model(vae, output_dir, portable_settings(config), figures, "reconstructions.png")
        report = settings | figures | {"data": config.data}
        write_json(output_dir / "report.json", report)
        write_page(output_dir)
    end_trackers(accelerator)
    push_model(push_settings)
    return summary


def run(config: AutoencoderConfig) -> None:
    """Train until the end or a signal, then say where the model is and what comes next."""
    train_autoencoder(config, stop=StopSignal())
    logger.info(after_autoencoder(config))


if __name__ == "__main__":
    run_command(AutoencoderConfig, run)
