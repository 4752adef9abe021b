"""The noise levels that sampling visits: a scheduler's steps, however many are asked for."""

import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)

from .add_noise import is_flow

# Down by a whole number of timesteps, wherever the next of them is.
WHOLE_STEPS = (DDIMScheduler, DDIMParallelScheduler, PNDMScheduler)


def set_inference_steps(
    scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
) -> None:
    """Spread a scheduler's steps over its noise levels.

    Left to themselves, flow's Euler and Heun go down to sigma = 1/1000 and spend their last step on
    nothing; here sigma falls from 1 in equal steps that end at 0.

    Args:
        scheduler: its `set_timesteps` is called.
        num_inference_steps: how many, at least 1.
        device: for the timesteps.

    Raises:
        ValueError: for fewer than 1, or a number that is not for the scheduler, see `check_steps`.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
    check_steps(scheduler, num_inference_steps)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    elif isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        scheduler.sigma_min = 1 / num_inference_steps  # the last sigma before 0
        scheduler.set_timesteps(num_inference_steps, device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    if scheduler.config.get("use_flow_sigmas"):
        # Cut to integers, they would tell the denoiser of another noise level than there is.
        sigmas = scheduler.sigmas[:-1].to(device)
        scheduler.timesteps = sigmas * scheduler.config.num_train_timesteps
    elif scheduler.config.get("timestep_spacing") == "trailing" and (scheduler.timesteps < 0).any():
        raise ValueError(
            f"{type(scheduler).__name__} makes a step too many of {num_inference_steps}, by "
            "rounding: use another number of steps"
        )


def check_steps(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """Refuse a number of steps of which a stock scheduler makes wrong ones without a word.

    Of N timesteps, DDIM goes down by `N // steps` each time, and then tells the denoiser of the
    rounded next one: where steps do not divide N, of other noise than there is, and the last step
    may leave some. Steps from the end (`leading`) are as long as it thinks.

    Args:
        scheduler: a stock scheduler.
        num_inference_steps: at least 1.

    Raises:
        ValueError: naming numbers that fit; or if there are fewer timesteps than steps.
    """
    if is_flow(scheduler):
        return  # its timesteps are no whole numbers
    name, total = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if num_inference_steps > total:
        raise ValueError(f"{name} has {total} timesteps, too few for {num_inference_steps} steps")
    if not isinstance(scheduler, WHOLE_STEPS):
        return
    spacing = scheduler.config.timestep_spacing
    fitting = [n for n in range(1, total + 1) if spacing == "trailing" and total % n == 0]
    if spacing != "leading" and num_inference_steps not in fitting:
        mend = "use the sampler euler, whose steps may have any length"
        if fitting:
            below = max(n for n in fitting if n < num_inference_steps)
            above = min(n for n in fitting if n > num_inference_steps)
            mend = f"use {below} or {above} steps, or {mend[4:]}"
        raise ValueError(
            f"{name} makes steps of whole timesteps, and {num_inference_steps} of {total}, spaced "
            f"as {spacing}, are not: {mend}"
        )
