"""Which stock scheduler samples for which objective, and how each is told all that it must know.

A denoiser answers in the terms that it was trained in (its objective), at noise levels of the
schedule that it was trained on. A sampler that takes the answer for another's, or counts other
noise levels, still makes images: wrong ones. So samplers are made here, and others are compared.
"""

from typing import Literal, get_args

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from .add_noise import is_flow

Sampler = Literal["euler", "heun", "dpm++", "unipc", "ddim"]

FLOW_SAMPLERS: dict[str, type[SchedulerMixin]] = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
DIFFUSION_SAMPLERS: dict[str, type[SchedulerMixin]] = {
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "ddim": DDIMScheduler,
}


def get_objective(scheduler: SchedulerMixin) -> str:
    """Tell what a scheduler takes the denoiser's answer for.

    Args:
        scheduler: a stock scheduler.

    Returns:
        `flow`, or the prediction type: `epsilon`, `v_prediction`, `sample`.
    """
    return "flow" if is_flow(scheduler) else scheduler.config.prediction_type


def compatible_samplers(scheduler: SchedulerMixin) -> list[str]:
    """Return the names of the samplers that go with a scheduler's objective.

    HeunDiscreteScheduler knows neither the objective `sample` nor a schedule that ends without any
    signal (zero terminal SNR).

    Args:
        scheduler: of the trained model; its configuration says the objective.
    """
    if is_flow(scheduler):
        return list(FLOW_SAMPLERS)
    zero_terminal_snr = scheduler.config.get("rescale_betas_zero_snr", False)
    no_heun = zero_terminal_snr or get_objective(scheduler) == "sample"
    return [name for name in DIFFUSION_SAMPLERS if not (name == "heun" and no_heun)]


def create_sampler(scheduler: SchedulerMixin, sampler: str) -> SchedulerMixin:
    """Create the stock scheduler of a sampler, for a trained model.

    Args:
        scheduler: of the trained model; objective and noise levels are carried over.
        sampler: one of `compatible_samplers(scheduler)`.

    Returns:
        A new scheduler; the given one is left as it is.

    Raises:
        ValueError: if the sampler is not known, or not for this objective.
    """
    if sampler not in get_args(Sampler):
        raise ValueError(f"there is no sampler {sampler!r}: use {', '.join(get_args(Sampler))}")
    compatible = compatible_samplers(scheduler)
    if sampler not in compatible:
        raise ValueError(
            f"sampler {sampler} does not go with a denoiser of the objective "
            f"{get_objective(scheduler)}"
            + (" and zero terminal SNR" if scheduler.config.get("rescale_betas_zero_snr") else "")
            + f": use {', '.join(compatible)}"
        )
    if not is_flow(scheduler):
        return DIFFUSION_SAMPLERS[sampler].from_config(scheduler.config)
    config = scheduler.config
    steps, shift = config.num_train_timesteps, config.get("shift", config.get("flow_shift", 1.0))
    if sampler in ("euler", "heun"):
        return FLOW_SAMPLERS[sampler](num_train_timesteps=steps, shift=shift)
    return FLOW_SAMPLERS[sampler](
        num_train_timesteps=steps,
        flow_shift=shift,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
    )


def check_sampler(trained: SchedulerMixin, scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler that would make wrong images of a denoiser's answers.

    Args:
        trained: the scheduler of the trained model.
        scheduler: the one to sample with.

    Raises:
        ValueError: if it takes the answers for another objective's, counts other noise levels, or
            clips the latents, which have no bounds.
    """
    name, mend = type(scheduler).__name__, "use pipeline.use_sampler(name)"
    objective = get_objective(trained)
    if get_objective(scheduler) != objective:
        raise ValueError(
            f"{name} takes the denoiser's answer for {get_objective(scheduler)}, and it was "
            f"trained for {objective}: {mend}"
        )
    if objective == "flow":
        told = name.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas", False)
        same = told and scheduler.config.num_train_timesteps == trained.config.num_train_timesteps
    else:
        same = _same_noise_levels(trained, scheduler)
    if not same:
        raise ValueError(f"{name} has other noise levels than the denoiser was trained on: {mend}")
    for setting in ("clip_sample", "thresholding"):
        if scheduler.config.get(setting, False):
            raise ValueError(
                f"{name} has {setting}=True, and latents have no bounds: set it to False, or {mend}"
            )


def _same_noise_levels(trained: SchedulerMixin, scheduler: SchedulerMixin) -> bool:
    """Compare signal shares; at zero terminal SNR some samplers keep a last rest of signal."""
    ours, theirs = (getattr(x, "alphas_cumprod", None) for x in (trained, scheduler))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    return torch.allclose(ours.cpu(), theirs.cpu(), rtol=1e-4, atol=1e-6)
