"""Load a model and generate images with it in batches."""

from collections.abc import Sequence
from functools import partial

import torch

from hf_latent.data.device import fastest_device
from hf_latent.errors import UserError
from hf_latent.models.load import find_model, load_denoiser, loading
from hf_latent.models.slicing import slice_if_needed
from hf_latent.pipeline import LatentDiffusionPipeline, denoise
from hf_latent.pipeline.conditions import has_prompts
from hf_latent.pipeline.denoise import Guidance
from hf_latent.pipeline.prompts import choose_prompts, encode_prompts
from hf_latent.pipeline.samplers import (
    check_removes_noise,
    get_objective,
    guidance_by_step,
    same_noise_levels,
    set_inference_steps,
)


def load_pipeline(
    model: str, sampler: str | None = None, guide: str | None = None
) -> LatentDiffusionPipeline:
    """Load a saved model onto the accelerator, or the CPU if there is none.

    Args:
        model: as of `find_model`.
        sampler: a sampler's name; None: the one that the model was saved with.
        guide: a weaker denoiser for autoguidance, see `load_denoiser`; None: the one that the
            model was saved with, if any.

    Returns:
        The pipeline, without progress bars.

    Raises:
        UserError: if there is no such model, or the sampler or the guide does not fit it.
    """
    folder = find_model(model)
    with loading(folder, "model"):
        pipeline = LatentDiffusionPipeline.from_pretrained(folder)
        for name in ("text_encoder", "tokenizer") if has_prompts(pipeline.unet) else ():
            pipeline.require(name)
    if sampler is not None:
        try:
            pipeline.use_sampler(sampler)
        except ValueError as error:
            raise UserError(f"--sampler {sampler} is not for this model: {error}") from error
    if guide is not None:
        add_guide(pipeline, guide)
    pipeline.to(fastest_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def add_guide(pipeline: LatentDiffusionPipeline, guide: str) -> None:
    """Set or replace a model's guide.

    Args:
        guide: a weaker denoiser for autoguidance, see `load_denoiser`.

    Raises:
        UserError: if there is no such denoiser, or it does not fit the model.
    """
    guide_unet, scheduler = load_denoiser(guide)
    trained = pipeline.trained_scheduler
    try:
        if scheduler is not None and get_objective(scheduler) != get_objective(trained):
            raise ValueError(
                f"it was trained for {get_objective(scheduler)}, and the model for "
                f"{get_objective(trained)}: use a guide of the same objective"
            )
        if scheduler is not None and not same_noise_levels(trained, scheduler):
            raise ValueError(
                "it was trained on other noise levels: use a guide of the model's noise levels"
            )
        pipeline.register_modules(guide_unet=guide_unet)
        denoise.choose_sampling(pipeline, True)  # raises an error if the guide does not fit
    except ValueError as error:
        raise UserError(f"--guide {guide} is not for this model: {error}") from error


def compile_denoiser(pipeline: LatentDiffusionPipeline) -> None:
    """Compile the denoiser, and a guide, in place: for each batch size at its first step."""
    for network in (pipeline.unet, pipeline.guide_unet):
        if network is not None:
            network.compile(dynamic=False)


def choose_sampling(
    pipeline: LatentDiffusionPipeline,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    conditional: bool | None = None,
) -> tuple[int, Guidance]:
    """Return the number of steps and the guidance of a command that draws a model's images.

    Args:
        pipeline: the model.
        num_inference_steps: as of `denoise.choose_sampling`, like the two others.
        conditional: whether classes or prompts are drawn; None: if the model has any.

    Raises:
        UserError: naming the flag that does not fit the model.
    """
    asked = num_inference_steps, guidance_scale, guidance_interval
    if conditional is None:
        conditional = pipeline.num_classes is not None or has_prompts(pipeline.unet)
    try:
        return denoise.choose_sampling(pipeline, conditional, *asked)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def count_evaluations(
    pipeline: LatentDiffusionPipeline,
    num_inference_steps: int,
    guidance: Guidance | None = None,
) -> int:
    """Return how many network evaluations one image needs.

    A guided step counts as two: the denoiser with and without the label and the prompt or, in
    autoguidance, the denoiser and its guide. A smaller guide counts like a large one. The text
    encoder does not count.

    Args:
        num_inference_steps: the scheduler's steps; some schedulers evaluate twice per step.
        guidance: None: no guidance.

    Raises:
        UserError: if the scheduler cannot do this number of steps.
    """
    try:
        check_removes_noise(pipeline.trained_scheduler, pipeline.scheduler, num_inference_steps)
        set_inference_steps(pipeline.scheduler, num_inference_steps, "cpu")
    except ValueError as error:
        raise UserError(
            f"--num_inference_steps {num_inference_steps} is not for this scheduler: {error}"
        ) from error
    timesteps = pipeline.scheduler.timesteps
    scales = guidance_by_step(guidance or Guidance(), pipeline.scheduler, timesteps)
    return sum(1 if scale == 1 else 2 for scale in scales)


@torch.no_grad()
def encode_each(
    pipeline: LatentDiffusionPipeline, prompts: Sequence[str] | None, batch_size: int
) -> list[torch.Tensor] | None:
    """Encode prompts, equal ones once.

    Args:
        prompts: P texts; None: the empty prompt.
        batch_size: prompts to encode at a time.

    Returns:
        `(T, D)` of each prompt, for a call's `prompt_embeds`; None for a model without prompts.

    Raises:
        ValueError: if the model takes no prompts, or has no text encoder.
    """
    texts = choose_prompts(pipeline.unet, prompts, None)
    if not has_prompts(pipeline.unet):
        return None
    if not isinstance(texts, list):
        texts = [""]
    encoder, distinct = pipeline.require("text_encoder"), list(dict.fromkeys(texts))
    encoded: dict[str, torch.Tensor] = {}
    for start in range(0, len(distinct), batch_size):
        part = distinct[start : start + batch_size]
        encoded |= zip(part, encode_prompts(encoder, pipeline.tokenizer, part), strict=True)
    return [encoded[text] for text in texts]


@torch.no_grad()
def sample_images(
    pipeline: LatentDiffusionPipeline,
    class_labels: list[int] | None,
    num_images: int,
    seed: int,
    batch_size: int,
    guidance_scale: float | None = None,
    num_inference_steps: int | None = None,
    guidance_interval: tuple[float, float] | None = None,
    whole_batches: bool = False,
    prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
) -> torch.Tensor:
    """Generate images in batches; image i has the seed `seed + i`.

    Args:
        class_labels: used in turn; None: the null label, or a model without classes.
        seed: of the first image.
        guidance_scale: as in the pipeline's call.
        num_inference_steps: as in the pipeline's call.
        guidance_interval: as in the pipeline's call.
        whole_batches: fill up the last batch, with images that are dropped. A compiled denoiser
            would be compiled again for a smaller one.
        prompts: used in turn, beside class_labels; None: the empty prompt, or a model without
            prompts.
        negative_prompt: as in the pipeline's call.

    Returns:
        `(num_images, C, H, W)` float32 in [0, 1], on the CPU.

    Raises:
        UserError: if the labels or prompts are not for this model, or an image is not finite.
    """
    try:
        embeds = encode_each(pipeline, prompts, batch_size)
    except ValueError as error:
        raise UserError(str(error)) from error

    def embeds_of(indices: range) -> torch.Tensor | None:
        return torch.stack([embeds[i % len(embeds)] for i in indices]) if embeds else None

    def generate(indices: range) -> torch.Tensor:
        (images,) = pipeline(
            class_labels=class_labels and [class_labels[i % len(class_labels)] for i in indices],
            num_images=len(indices),
            generator=[torch.Generator().manual_seed(seed + i) for i in indices],
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            guidance_interval=guidance_interval,
            prompt_embeds=embeds_of(indices),
            negative_prompt=negative_prompt,
            output_type="pt",
            return_dict=False,
        )
        return images.float().cpu()

    batches = []
    for rows in torch.arange(num_images).split(batch_size):  # far too many fail here, at once
        start, count = int(rows[0]), batch_size if whole_batches else len(rows)
        indices = range(start, start + count)
        try:
            batches.append(slice_if_needed(pipeline.vae, partial(generate, indices)))
        except ValueError as error:
            raise UserError(str(error)) from error
    return torch.cat(batches)[:num_images]
