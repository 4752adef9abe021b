"""Step 3 of 4: noise to latents, one scheduler step after the other."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)

# Configuration entries that must be equal in a denoiser and its guide.
GUIDE_SHARES = (
    *("in_channels", "out_channels", "sample_size"),
    *("class_embed_type", "num_class_embeds"),
)
DEFAULT_INFERENCE_STEPS, DEFAULT_GUIDANCE_SCALE = 20, 2.0
# How far outside its interval guidance still acts. Flow's noise levels are up to one of 1,000
# timesteps away from those of equal steps from 1 to 0: they end at 1/1000 in UniPC, and begin at
# 0.999 in DPM-Solver++.
LEVEL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Guidance:
    """How strongly the conditions, or a guide, steer the denoiser, and at which noise levels.

    Guidance reduces variety at high noise levels and is hardly needed at low ones (Kynkäänniemi et
    al. 2024, section 3).

    Attributes:
        scale: 0 or above, finite; 1 is no guidance.
        interval: the lowest and the highest noise level with guidance, from 0 to 1, see
            `samplers.noise_levels`, each with a tolerance of `LEVEL_TOLERANCE`; None: all.

    Raises:
        ValueError: if scale or interval is out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check scale and interval."""
        if not 0 <= self.scale < inf:
            raise ValueError(f"guidance_scale must be 0 or above and finite, not {self.scale}")
        if self.interval is None:
            return
        pair = isinstance(self.interval, Sequence) and len(self.interval) == 2
        if not pair or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                "guidance_interval must be two noise levels from 0 to 1, the lower one first, not "
                f"{self.interval}"
            )


def size_multiple(unet: UNet2DModel) -> int:
    """Return the number that height and width of a denoiser's latents must be multiples of."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def prompt_width(unet: UNet2DModel | UNet2DConditionModel) -> int | None:
    """Return D of the prompts' embeddings `(B, T, D)` that a denoiser takes; None: no prompts."""
    return unet.config.get("encoder_hid_dim") or unet.config.get("cross_attention_dim")


def check_latents(unet: UNet2DModel, shape: Sequence[int]) -> None:
    """Check that a denoiser can take latents of a shape, `(B, c, h, w)`.

    Raises:
        ValueError: if the channels do not fit, or h or w is no multiple of `size_multiple(unet)`.
    """
    if len(shape) != 4:
        raise ValueError(f"latents must have the shape (B, c, h, w), not {tuple(shape)}")
    _, channels, height, width = shape
    multiple = size_multiple(unet)
    if channels != unet.config.in_channels:
        raise ValueError(
            f"the latents have {channels} channels and the denoiser takes {unet.config.in_channels}"
        )
    if height % multiple or width % multiple:
        raise ValueError(
            f"latents of {height}x{width} do not fit the denoiser: height and width must be "
            f"multiples of {multiple}, and those of the image multiples of {multiple} times the "
            "autoencoder's downsampling factor"
        )


def check_guide(unet: UNet2DModel, guide_unet: UNet2DModel) -> None:
    """Check that a guide has the shapes of the denoiser.

    Both must also be trained on the same latents, noise levels and objective, or the images are
    meaningless. The weights do not show this.

    Args:
        unet: the denoiser.
        guide_unet: the weaker denoiser; it may be narrower, or have fewer levels.

    Raises:
        ValueError: if channels, size, classes, prompts or dtype differ, or the guide has more
            levels, so that it could not take all latents that the denoiser takes.
    """
    shared = []
    for model in (guide_unet, unet):
        entries = {name: model.config.get(name) for name in GUIDE_SHARES}
        size = entries["sample_size"]
        entries["sample_size"] = [size, size] if isinstance(size, int) else list(size or ())
        shared.append(entries | {"prompt_width": prompt_width(model), "dtype": model.dtype})
    for name, own in shared[1].items():
        if shared[0][name] != own:
            raise ValueError(
                f"guide_unet has {name} {shared[0][name]}, and the denoiser {own}: use a guide of "
                "the same latents, classes, prompts and dtype"
            )
    guide_multiple, multiple = size_multiple(guide_unet), size_multiple(unet)
    if guide_multiple > multiple:
        raise ValueError(
            f"guide_unet needs latent sizes that are multiples of {guide_multiple}, the denoiser "
            f"{multiple}: use a guide with no more levels than the denoiser"
        )


def choose_sampling(
    pipeline: DiffusionPipeline,
    conditional: bool,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: Sequence[float] | None = None,
) -> tuple[int, Guidance]:
    """Choose a call's number of steps and guidance: its arguments, else the model's own.

    Args:
        pipeline: a `LatentDiffusionPipeline`.
        conditional: whether the call has conditions; without them and a guide there is no guidance.
        num_inference_steps: None: the model's own, else `DEFAULT_INFERENCE_STEPS`.
        guidance_scale: None: the model's own, else `DEFAULT_GUIDANCE_SCALE`; 1 if it is distilled.
        guidance_interval: None: the model's own, else all noise levels.

    Raises:
        ValueError: if a value is out of range, the model's guidance has other keys, the guide does
            not fit, guidance is set where there is none, or a distilled model would not make its
            own steps.
    """
    own, guide = pipeline.config, pipeline.guide_unet
    own_steps, own_guidance = own.get("num_inference_steps"), own.get("guidance") or {}
    given: dict[str, Any] = dict(guidance_scale=guidance_scale, guidance_interval=guidance_interval)
    if others := own_guidance.keys() - given:
        raise ValueError(f"guidance has no {', '.join(sorted(others))}")
    steps = own_steps if num_inference_steps is None else num_inference_steps
    steps = DEFAULT_INFERENCE_STEPS if steps is None else steps
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {steps}")
    if own.get("distilled"):
        _check_distilled(pipeline, steps, guidance_scale, guidance_interval)
        return steps, Guidance()
    if guide is not None:
        check_guide(pipeline.unet, guide)
    if not (conditional or guide is not None):
        for name, value in given.items():
            if value not in (None, 1):
                needed = "class_labels" if prompt_width(pipeline.unet) is None else "a prompt"
                raise ValueError(
                    f"{name} needs {needed} or a guide, and there is neither: leave it unset"
                )
        return steps, Guidance()
    for name, value in own_guidance.items():
        given[name] = value if given[name] is None else given[name]
    scale, interval = given.values()
    interval = tuple(interval) if isinstance(interval, list) else interval
    guidance = Guidance(DEFAULT_GUIDANCE_SCALE if scale is None else scale, interval)
    return steps, Guidance() if guidance.scale == 1 else guidance


def _check_distilled(
    pipeline: DiffusionPipeline,
    num_inference_steps: int,
    guidance_scale: float | None,
    guidance_interval: Sequence[float] | None,
) -> None:
    """Raise a ValueError if a distilled model would not make its own steps."""
    steps, trained = pipeline.config.get("num_inference_steps"), pipeline.trained_scheduler
    if steps is None:
        raise ValueError("a distilled model needs num_inference_steps: pass its number of steps")
    schedulers = [
        (type(x), {name: value for name, value in x.config.items() if name[0] != "_"})
        for x in (trained, pipeline.scheduler)
    ]
    changed = {
        "num_inference_steps": num_inference_steps != steps,
        "guidance_scale": guidance_scale not in (None, 1),
        "guidance_interval": guidance_interval is not None,
        "guidance": bool(pipeline.config.get("guidance")),
        "guide_unet": pipeline.guide_unet is not None,
        "scheduler": schedulers[0] != schedulers[1],
    }
    for name in [name for name, is_changed in changed.items() if is_changed]:
        raise ValueError(
            f"{name} does not fit: this model was distilled for {steps} steps of "
            f"{type(trained).__name__} without guidance: leave {name} as it was"
        )


def predict(
    unet: UNet2DModel,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Mapping[str, torch.Tensor] | None = None,
    guidance: float | None = None,
    null_conditions: Mapping[str, torch.Tensor] | None = None,
    guide_unet: UNet2DModel | None = None,
) -> torch.Tensor:
    """Evaluate the denoiser once; with guidance, if the scale is neither None nor 1.

    Classifier-free guidance (Ho and Salimans 2022, equation 6, with guidance = 1 + w):
    `null + guidance (conditional - null)`; both go through the denoiser in one batch.
    Autoguidance, if there is a guide (Karras et al. 2024, "Guiding a Diffusion Model with a Bad
    Version of Itself"): `guide + guidance (denoiser - guide)`, both with the same conditions. The
    paper does this with denoised latents; what an objective predicts is affine in them.

    Args:
        unet: the denoiser.
        noisy_latents: `(B, c, h, w)` float.
        timesteps: a tensor, 0-d or `(B,)` (a Python float would be cut to an integer).
        conditions: named tensors of B images; None or empty for an unconditional denoiser.
        guidance: the guidance scale.
        null_conditions: the null conditions, of the same names; only for classifier-free guidance.
        guide_unet: a weaker denoiser, see `check_guide`; None: classifier-free guidance.

    Returns:
        `(B, c, h, w)`, the prediction in the objective's terms.
    """
    conditions, timesteps = conditions or {}, timesteps.to(noisy_latents.device)
    guided = guidance is not None and guidance != 1
    if guided and guide_unet is not None:
        strong, weak = (
            network(noisy_latents, timesteps, **conditions).sample for network in (unet, guide_unet)
        )
        return weak + guidance * (strong - weak)
    if not guided or not null_conditions:
        return unet(noisy_latents, timesteps, **conditions).sample
    conditional, null = unet(
        torch.cat([noisy_latents, noisy_latents]),
        torch.cat([timesteps, timesteps]) if timesteps.ndim else timesteps,
        **{name: torch.cat([x, null_conditions[name]]) for name, x in conditions.items()},
    ).sample.chunk(2)
    return null + guidance * (conditional - null)


@torch.no_grad()
def denoise_latents(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    timesteps: Collection[torch.Tensor] | torch.Tensor,
    conditions: Mapping[str, torch.Tensor] | None = None,
    guidance: float | Sequence[float] | None = None,
    null_conditions: Mapping[str, torch.Tensor] | None = None,
    guide_unet: UNet2DModel | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    after_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """Remove the noise from latents, step by step.

    Args:
        unet: the denoiser.
        scheduler: a stock scheduler whose `set_timesteps` has been called.
        latents: `(B, c, h, w)` float, at the noise level of the first timestep.
        timesteps: the scheduler's timesteps, or the last of them (image to image).
        conditions: as of `predict`.
        guidance: the guidance scale, or one for each timestep; None or 1: off.
        null_conditions: as of `predict`.
        guide_unet: as of `predict`; autoguidance needs no conditions.
        generator: draws the noise of stochastic schedulers.
        after_step: `after_step(i, t, latents) -> latents`, called after every step; the next step
            starts from the latents that it returns.
        interrupted: called after every step; if it returns True, the noise that is left stays.

    Returns:
        `(B, c, h, w)` float, noise-free latents.

    Raises:
        ValueError: if latents or guide do not fit the denoiser, the number of conditions or scales
            is wrong, or guidance has neither conditions nor a guide.
    """
    check_latents(unet, latents.shape)
    conditions = conditions or {}
    for name, tensor in conditions.items():
        if len(tensor) != len(latents):
            words = name.replace("_", " ")
            raise ValueError(f"{len(tensor)} {words} do not fit {len(latents)} latents")
    scales = guidance if isinstance(guidance, Sequence) else [guidance] * len(timesteps)
    if len(scales) != len(timesteps):
        raise ValueError(f"{len(scales)} guidance scales do not fit {len(timesteps)} timesteps")
    given = {*scales} - {None}
    if not (isfinite(sum(given)) and min(given, default=0) >= 0):
        for scale in given:
            Guidance(scale)  # raises an error for one of them
    if guide_unet is not None:
        check_guide(unet, guide_unet)
    elif not (conditions and null_conditions) and given - {1}:
        raise ValueError(
            "guidance needs conditions, such as class labels, and their null_conditions, or a "
            "guide_unet"
        )
    step_arguments = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_arguments["generator"] = generator
    for i, t in enumerate(timesteps):
        noisy_latents = latents
        if hasattr(scheduler, "scale_model_input"):
            noisy_latents = scheduler.scale_model_input(latents, t)
        model_output = predict(
            unet, noisy_latents, t, conditions, scales[i], null_conditions, guide_unet
        )
        stepped = scheduler.step(model_output, t, latents, **step_arguments).prev_sample
        latents = stepped.to(latents.dtype)  # a few schedulers compute in float64
        if after_step is not None:
            corrects = isinstance(scheduler, UniPCMultistepScheduler) and i + 1 < len(timesteps)
            before = latents.clone() if corrects else latents
            latents = after_step(i, t, latents)
            if corrects:
                _carry_change(scheduler, latents - before)
        if interrupted():
            break
    return latents


def _carry_change(scheduler: UniPCMultistepScheduler, change: torch.Tensor) -> None:
    """Carry a change of the latents into UniPC's correction of its last step.

    The correction starts again from the latents before that step, and would undo the change. They
    enter it with the factor sigma_t / sigma_s, or alpha_t / alpha_s (Zhao et al. 2023).
    """
    start, end = (
        scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index - back])
        for back in (1, 0)
    )
    factor = 1 if scheduler.config.predict_x0 else 0
    scheduler.last_sample = scheduler.last_sample + change * (start[factor] / end[factor])
