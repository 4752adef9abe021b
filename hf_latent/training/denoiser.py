"""The second training: the denoiser, on the latents of a frozen autoencoder.

Read from top to bottom: data, latents, model, steps, save.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate.utils import send_to_device
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_latent.add_noise import NoisedLatents, add_noise
from hf_latent.command import run_command
from hf_latent.data.images import ImageSplits
from hf_latent.errors import UserError
from hf_latent.models.frozen import FrozenWeights, freeze, hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import (
    create_denoiser,
    create_scheduler,
    measure_compression,
)
from hf_latent.output import replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.batches import GlobalBatchSampler, ProcessRows, seeded_generator
from hf_latent.training.checkpoints import (
    HasState,
    TrainingState,
    resume_training,
    save_checkpoint,
)
from hf_latent.training.clock import TrainingClock, TrainingSummary
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.ema import ema_weights
from hf_latent.training.guard import NonFiniteGuard
from hf_latent.training.latents import LatentMoments, encode_moments
from hf_latent.training.losses import denoising_loss, draw_timesteps
from hf_latent.training.run import (
    create_ema,
    create_optimizer,
    process_rows,
    start_accelerator,
)
from hf_latent.training.run_folder import open_run_images, start_run_folder
from hf_latent.training.stop import StopSignal, leave
from hf_latent.training.validation import held_out_denoising_loss, save_samples


@dataclass(frozen=True)
class DenoiserSummary(TrainingSummary):
    """What the training of a denoiser did.

    Attributes:
        encode_seconds: wall-clock time of encoding all training images.
        encoded_images_per_second: over all processes.
        vae_hash_before: SHA-256 of the autoencoder's weights before the training.
        vae_hash_after: and after it; equal, or the training ended with an error.
    """

    encode_seconds: float
    encoded_images_per_second: float
    vae_hash_before: str
    vae_hash_after: str


def draw_batch(
    config: DenoiserConfig,
    scheduler: SchedulerMixin,
    splits: ImageSplits,
    moments: LatentMoments,
    rows: ProcessRows,
    keys: list[tuple[int, int]],
    place: tuple[int, int],
) -> tuple[NoisedLatents, torch.Tensor | None]:
    """Make one process's rows of a training batch.

    Everything random is drawn for the global batch from (seed, step, micro-step), and then cut, so
    that a row does not depend on how many processes there are.

    Args:
        config: the seed and the distributions.
        scheduler: says the objective.
        splits: knows which images an epoch mirrors.
        moments: the posteriors of the training images.
        rows: of this process.
        keys: (epoch, index) of these rows.
        place: step and micro-step.

    Returns:
        The noised latents, and their class labels with some replaced by the null label (None for
        an unconditional denoiser), all on the CPU.
    """
    generator = seeded_generator(config.seed, "denoiser", *place)
    shape = (rows.global_size, *moments.mean.shape[2:])
    posterior_noise, noise = torch.randn(2, *shape, generator=generator)
    timesteps = draw_timesteps(
        scheduler,
        rows.global_size,
        generator,
        config.timestep_logit_mean,
        config.timestep_logit_std,
    )
    dropped = torch.rand(rows.global_size, generator=generator) < config.label_dropout

    indices = torch.tensor([index for _, index in keys])
    mirrored = torch.tensor([splits.train.is_mirrored(*key) for key in keys])
    latents = moments.sample(indices, mirrored, rows.of(posterior_noise))
    noised = add_noise(scheduler, latents, rows.of(noise), rows.of(timesteps))
    if moments.class_labels is None or splits.num_classes is None:
        return noised, None
    labels = moments.class_labels[indices]
    return noised, labels.masked_fill(rows.of(dropped), splits.num_classes)


def train_denoiser(
    config: DenoiserConfig, splits: ImageSplits | None = None, stop: StopSignal | None = None
) -> DenoiserSummary:
    """Encode the images once, train a denoiser on their latents and save the pipeline.

    Args:
        config: the settings.
        splits: the images, where they are open already.
        stop: ends the training between two steps, with a checkpoint.

    Returns:
        What was done; the pipeline is in `output_dir/model`.

    Raises:
        UserError: if the settings, the images, the autoencoder or the folder are not fit.
        SystemExit: with status 0, where `stop` asked for it.
    """
    if config.crop == "random":
        raise UserError("--crop random does not go with latents that are encoded once: use center")
    accelerator = start_accelerator(config)
    vae = load_autoencoder(config.vae)
    splits = splits or open_run_images(config, accelerator)
    torch.manual_seed(config.seed)
    num_classes = splits.num_classes if config.conditional else None
    unet = create_denoiser(config.preset, vae, splits.image_shape, num_classes)
    scheduler = create_scheduler(config.objective)
    accelerator.print(f"latents: {measure_compression(vae, splits.image_shape)}")
    output_dir = start_run_folder(config, splits, accelerator)

    freeze(vae).to(accelerator.device)
    frozen_vae = FrozenWeights(vae)
    encoding_start = time.perf_counter()
    train = encode_moments(vae, splits.train, accelerator, config, config.horizontal_flip)
    encode_seconds = time.perf_counter() - encoding_start
    validation_images = splits.validation.evenly_spaced(config.max_validation_samples)
    held_out = encode_moments(vae, validation_images, accelerator, config)
    if num_classes is None:
        train, held_out = (replace(moments, class_labels=None) for moments in (train, held_out))

    ema = create_ema(config, unet, accelerator.device)
    optimizer = create_optimizer(config, unet)
    model, optimizer = accelerator.prepare(unet, optimizer)
    clock = TrainingClock(config, accelerator, "denoiser")
    guard = NonFiniteGuard(output_dir, accelerator)
    others: dict[str, HasState] = {"clock": clock, "vae": frozen_vae}
    state = TrainingState({"unet": unet}, {"unet": optimizer}, {"unet": ema}, others)
    resume_training(config, accelerator, state)

    rows = process_rows(config, accelerator)
    start_batch = clock.step * config.gradient_accumulation_steps
    batches = iter(GlobalBatchSampler(len(splits.train), rows, config.seed, start_batch))

    def validate() -> None:
        with clock.validation():
            loss = held_out_denoising_loss(unet, scheduler, held_out, config)
            clock.log_validation_loss(loss)
            save_samples(vae, unet, scheduler, config, clock.step)

    for step in clock.steps(optimizer):
        losses: list[torch.Tensor] = []
        batch: dict[str, torch.Tensor] = {}
        for micro_step in range(config.gradient_accumulation_steps):
            noised, labels = draw_batch(
                config, scheduler, splits, train, rows, next(batches), (step, micro_step)
            )
            noised, labels = send_to_device((noised, labels), accelerator.device)
            batch |= {f"{k}_{micro_step}": tensor for k, tensor in vars(noised).items()}
            with accelerator.accumulate(model):
                output = model(noised.noisy_latents, noised.timesteps, class_labels=labels).sample
                loss = denoising_loss(output, noised.target, noised.weights)
                clock.log_loss(loss)
                losses.append(loss.detach())
                accelerator.backward(loss)
        norms = state.clip_gradients(["unet"], config.max_grad_norm, accelerator)
        if guard.allows(step, torch.stack(losses).sum(), norms, batch):
            state.step_optimizers(["unet"], accelerator)
            ema.step(unet.parameters())
        optimizer.zero_grad()
        if clock.validation_is_due and accelerator.is_main_process:
            with ema_weights(ema, unet):
                validate()
        stopping = stop is not None and stop.requested(accelerator)
        if stopping or clock.checkpoint_is_due:
            save_checkpoint(config, accelerator, state, clock.step)
        if stopping:
            leave(config, "denoiser", accelerator)

    if stop is not None:
        stop.release()
    ema.copy_to(unet.parameters())
    freeze(unet)
    vae_hash_after = hash_weights(vae)
    if vae_hash_after != frozen_vae.sha256:
        raise RuntimeError("the frozen autoencoder changed while the denoiser trained")
    if accelerator.is_main_process:
        validate()
        id2label = None if num_classes is None else splits.id2label
        pipeline = LatentDiffusionPipeline(vae, unet, scheduler, id2label)
        with replaced_whole(output_dir / "model") as temporary:
            pipeline.save_pretrained(temporary)
    accelerator.wait_for_everyone()
    # Not end_training: the process group may be needed for a second training.
    for tracker in accelerator.trackers:
        tracker.finish()
    return DenoiserSummary(
        **vars(clock.summary(output_dir / "model")),
        encode_seconds=encode_seconds,
        encoded_images_per_second=train.mean[:, :, 0, 0, 0].numel() / encode_seconds,
        vae_hash_before=frozen_vae.sha256,
        vae_hash_after=vae_hash_after,
    )


if __name__ == "__main__":
    run_command(DenoiserConfig, partial(train_denoiser, stop=StopSignal()))
