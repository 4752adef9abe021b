"""Train a denoiser on the latents of a frozen autoencoder.

`LatentTask` has the data and the models; `denoiser_loop.py` has the optimizer, the steps and the
save.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_latent.command import run_command
from hf_latent.data.images.captions import NO_CAPTION, CaptionTexts
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.cache import LatentBatch
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import add_guide
from hf_latent.lock import locks_output
from hf_latent.models.frozen import FrozenWeights, freeze, hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import (
    FLOW_INFERENCE_STEPS,
    create_scheduler,
    measure_compression,
)
from hf_latent.models.text_encoder import load_text_encoder, text_width
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import NoisedLatents, add_noise
from hf_latent.pipeline.conditions import Conditions, drop_conditions, null_conditions
from hf_latent.pipeline.prompts import describe_cut
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.denoiser_loop import DenoiserTask, train_on_task
from hf_latent.training.dry_run.bare import bare_denoiser
from hf_latent.training.dry_run.estimate import end_dry_run
from hf_latent.training.finish.next_steps import after_denoiser
from hf_latent.training.finish.reports import denoiser_figures
from hf_latent.training.latents.captions import CaptionEmbeddings
from hf_latent.training.latents.sources import open_latent_source
from hf_latent.training.losses import choose_timesteps, contrast, normal_to_uniform
from hf_latent.training.run.accelerator import process_rows, start_accelerator
from hf_latent.training.run.batches import ShardedDraws
from hf_latent.training.run.checkpoints import HasState, TrainingState
from hf_latent.training.run.clock import TrainingSummary
from hf_latent.training.run.pictures import MAX_GRID_ROWS
from hf_latent.training.run.stop import StopSignal
from hf_latent.training.start.denoiser import start_denoiser
from hf_latent.training.validation.denoiser import measure_held_out_loss

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
    captions: CaptionEmbeddings | None = None,
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
        captions: of the images' captions; None without captions.

    Returns:
        The noised latents and their conditions, some of them replaced by the null conditions.
    """
    shape = batch.posteriors.mean.shape
    count = 2 * shape[1:].numel() + 2
    values = draws.normal(place, count if captions is None else count + 1)
    posterior_noise, noise = values[:, 2:count].view(len(values), 2, *shape[1:]).unbind(1)
    timesteps = choose_timesteps(
        scheduler,
        values[:, 0],
        config.timestep_logit_mean,
        config.timestep_logit_std,
        config.timestep_sampling,
    )

    latents = batch.posteriors.sample(posterior_noise)
    noised = add_noise(scheduler, latents, noise, timesteps, config.snr_gamma)
    if config.contrastive_weight:
        noised = contrast(noised, config.contrastive_weight)
    conditions = batch.conditions
    if captions is not None:
        conditions = captions.replace_numbers(conditions, normal_to_uniform(values[:, -1]))
    uniform = normal_to_uniform(values[:, 1])
    return noised, drop_conditions(conditions, null, uniform, config.label_dropout)


def open_captions(
    config: DenoiserConfig, captions: CaptionTexts | None
) -> CaptionEmbeddings | None:
    """Open the text encoder of a training with captions; None without one.

    Args:
        config: names the encoder.
        captions: of the images.

    Raises:
        UserError: if there is no such encoder, or the images have no captions.
    """
    if config.text_encoder is None:
        if captions is not None:
            logger.info("the latents have captions, which are not used without --text_encoder")
        return None
    if captions is None:
        raise UserError(
            f"--latents {config.latents} has no captions for --text_encoder: encode the images "
            "again with --caption_column, or leave --text_encoder out"
        )
    encoder, tokenizer = load_text_encoder(config.text_encoder, config.caption_length)
    if cut := describe_cut(tokenizer, captions.texts):
        logger.warning(f"{cut}; --caption_length sets the number")
    folder = Path(config.output_dir) / "captions"
    return CaptionEmbeddings(captions.texts, encoder, tokenizer, folder)


class LatentTask(DenoiserTask):
    """Learn to denoise the latents of images; see `DenoiserTask`.

    Args:
        config: the settings.
        splits: the images; None opens those of the settings.
        accelerator: of the training.

    Raises:
        UserError: if the settings, the images or the autoencoder are not valid.
    """

    command = "train-denoiser"

    def __init__(
        self, config: DenoiserConfig, splits: ImageSplits | None, accelerator: Accelerator
    ):
        """Open the images and the models."""
        self.config, self.accelerator = config, accelerator
        self.vae = load_autoencoder(config.vae)
        self.source = source = open_latent_source(config, accelerator, self.vae, splits)
        id2label = source.id2label if config.conditional else None
        num_classes = None if id2label is None else len(id2label)
        self.captions = captions = open_captions(config, source.captions)
        words, width = {}, None
        if captions is not None:
            words = {"text_encoder": captions.text_encoder, "tokenizer": captions.tokenizer}
            width = text_width(captions.text_encoder)
        self.unet = start_denoiser(config, self.vae, source.image_shape, num_classes, width)
        self.scheduler, sampler = (
            create_scheduler(config.objective, config.zero_terminal_snr) for _ in range(2)
        )
        self.pipeline = LatentDiffusionPipeline(
            *(self.vae, self.unet, sampler, id2label),
            guidance=config.guidance,
            num_inference_steps=FLOW_INFERENCE_STEPS if config.objective == "flow" else None,
            **words,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        if config.guide is not None:
            add_guide(self.pipeline, config.guide)
            freeze(self.pipeline.guide_unet).to(accelerator.device)
        self.compression = measure_compression(self.vae, source.image_shape)
        logger.info(f"latents: {self.compression}")
        freeze(self.vae).to(accelerator.device)
        self.frozen = {"vae": FrozenWeights(self.vae)}
        self.states: dict[str, HasState] = {"latents": source}
        if captions is not None:
            self.frozen["text_encoder"] = captions.frozen
            self.states["captions"] = captions
        self.summary = source.summary
        self.resolved = {"validation_fingerprint": source.validation_fingerprint}
        self.rows = process_rows(config.train_batch_size, accelerator)
        self.draws = ShardedDraws(config.seed, "denoiser", self.rows, accelerator.device)

    def end_dry_run(self, state: TrainingState) -> NoReturn:
        """Print what the training needs, and end it."""
        bare, count = partial(bare_denoiser, self.scheduler), self.source.train_images
        frozen = {"vae": self.vae, "guide": self.pipeline.guide_unet}
        shapes = self.compression
        end_dry_run(self.config, bare, state, frozen, shapes, count, None, self.accelerator)

    def prepare(self, done: int) -> None:
        """Encode the images that are not encoded yet, and start to read their latents."""
        self.source.prepare(self.vae)
        self.batches = self.source.batches(done)
        self.null = null_conditions(self.unet, self.rows.batch_size, self.accelerator.device)
        held_out = self.source.held_out()
        if self.captions is not None:
            held_out = self._encode_captions(self.captions, held_out)
        kept = {name: held_out.conditions[name] for name in self.null}
        self.held_out = replace(held_out, conditions=kept)

    def _encode_captions(self, captions: CaptionEmbeddings, held_out: LatentBatch) -> LatentBatch:
        """Encode all captions; return held-out latents with those of the first ones."""
        captions.encode(self.accelerator)
        self.null |= captions.empty(self.rows.batch_size, self.accelerator.device)
        first = held_out.conditions["caption_ids"][:, 0]
        distinct = dict.fromkeys(captions.texts[x] for x in first.tolist() if x != NO_CAPTION)
        step = max(1, len(distinct) // MAX_GRID_ROWS)
        self.prompts = list(distinct)[::step][:MAX_GRID_ROWS]
        chosen = torch.zeros(len(held_out))
        return replace(held_out, conditions=captions.replace_numbers(held_out.conditions, chosen))

    def draw(self, step: int, micro_step: int) -> tuple[NoisedLatents, Conditions]:
        """Read the next latents, and add noise."""
        latents, place = next(self.batches).to(self.accelerator.device), (step, micro_step)
        common = self.null, self.draws, place, self.captions
        return draw_batch(self.config, self.scheduler, latents, *common)

    def measure(self) -> tuple[float, dict[str, float]]:
        """Measure the loss on held-out latents."""
        return measure_held_out_loss(
            self.unet, self.scheduler, self.held_out, self.rows.batch_size, self.config.seed
        )

    def figures(self) -> dict[str, Any]:
        """Return figures of the images, the latents and the autoencoder."""
        figures = denoiser_figures(self.config.vae, self.source, self.pipeline)
        if self.prompts:
            figures["example_prompt"] = self.prompts[0]
        return figures | {"held_out_images": len(self.held_out)}


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
    task = LatentTask(config, splits, accelerator)
    summary = train_on_task(config, task, accelerator, stop, now)
    return DenoiserSummary(
        **vars(summary),
        encode_seconds=task.source.encode_seconds,
        encoded_images=task.source.encoded_images,
        vae_hash_before=task.frozen["vae"].sha256,
        vae_hash_after=hash_weights(task.vae),
    )


def run(config: DenoiserConfig) -> None:
    """Train until the end or a signal, then say where the model is and what comes next."""
    train_denoiser(config, stop=StopSignal())
    logger.info(after_denoiser(config))


if __name__ == "__main__":
    run_command(DenoiserConfig, run)
