"""Guidance at some noise levels and not at others."""

from collections.abc import Iterable, Sequence

import torch
from diffusers import SchedulerMixin

from .add_noise import is_flow


def noise_levels(scheduler: SchedulerMixin, timesteps: Iterable[torch.Tensor]) -> list[float]:
    """Return how much of the noisy latents is noise, on one scale for all objectives.

    `sigma / (1 + sigma)` of noisy = clean + sigma noise; for flow its own sigma, which is the same.

    Args:
        scheduler: a stock scheduler.
        timesteps: some of its timesteps.

    Returns:
        A level in [0, 1] a timestep; 1 is noise only.
    """
    levels = torch.stack(list(timesteps)).cpu().double()  # not every device has float64
    if is_flow(scheduler):
        return (levels / scheduler.config.num_train_timesteps).tolist()
    signal_share = scheduler.alphas_cumprod.cpu().double()[levels.round().long()]
    signal, noise = signal_share.sqrt(), (1 - signal_share).sqrt()
    return (noise / (signal + noise)).tolist()


def guidance_by_step(
    scheduler: SchedulerMixin,
    timesteps: Iterable[torch.Tensor],
    guidance_scale: float,
    interval: tuple[float, float] | None = None,
) -> list[float]:
    """Guide at the noise levels of an interval only (Kynkäänniemi et al. 2024, section 3).

    Guidance harms the first steps, at high noise levels, where it narrows what is made, and is of
    no use in the last ones.

    Args:
        scheduler: a stock scheduler.
        timesteps: those of the steps that will be made.
        guidance_scale: inside the interval; outside there is none.
        interval: lowest and highest noise level, as of `noise_levels`; None: all.

    Returns:
        The guidance scale of every step, 1 where there is none.

    Raises:
        ValueError: if the interval is not two levels from 0 to 1 in rising order.
    """
    if interval is None:
        return [guidance_scale for _ in timesteps]
    pair = isinstance(interval, Sequence) and len(interval) == 2
    if not pair or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(
            "guidance_interval must be two noise levels from 0 to 1, the lower one first, not "
            f"{interval}"
        )
    levels = noise_levels(scheduler, timesteps)
    return [guidance_scale if interval[0] <= x <= interval[1] else 1.0 for x in levels]
