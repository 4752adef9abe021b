"""How much guidance, and at which noise levels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin

from .add_noise import is_flow

DEFAULT_GUIDANCE_SCALE = 2.0


def choose_guidance(
    guidable: bool,
    guidance_scale: float | None,
    guidance_interval: Sequence[float] | None,
    own: Mapping[str, Any] | None,
) -> tuple[float, tuple[float, float] | None]:
    """Fill in what of guidance was not said: as the model has it, else 2 at all noise levels.

    Args:
        guidable: whether there is something to guide by, class labels or a guide.
        guidance_scale: as asked for, or None.
        guidance_interval: as asked for, or None.
        own: the model's guidance, see `check_guidance`.

    Returns:
        The scale, 1 where nothing guides, and the interval, None for all noise levels or where
        there is no guidance.

    Raises:
        ValueError: if the interval is not two levels from 0 to 1 in rising order.
    """
    if not guidable:
        return 1.0, None
    own = own or {}
    if guidance_scale is None:
        guidance_scale = own.get("guidance_scale")
    if guidance_interval is None:
        guidance_interval = own.get("guidance_interval")
    if guidance_interval is not None:
        check_interval(guidance_interval)
        guidance_interval = (guidance_interval[0], guidance_interval[1])
    scale = DEFAULT_GUIDANCE_SCALE if guidance_scale is None else guidance_scale
    return scale, None if scale == 1 else guidance_interval


def check_guidance(guidance: Mapping[str, Any] | None) -> None:
    """Refuse a model's guidance that is none.

    Args:
        guidance: `guidance_scale` and `guidance_interval`, either or both; None: the usual one.

    Raises:
        ValueError: for other names, a scale below 0, or an interval that is none.
    """
    if others := set(guidance or {}) - {"guidance_scale", "guidance_interval"}:
        raise ValueError(f"guidance has no {', '.join(sorted(others))}")
    scale, _ = choose_guidance(True, None, None, guidance)
    if not scale >= 0:
        raise ValueError(f"guidance_scale must be 0 or above, not {scale}")


def check_interval(interval: Any) -> None:
    """Refuse an interval that is not two levels from 0 to 1 in rising order, by ValueError."""
    pair = isinstance(interval, Sequence) and len(interval) == 2
    if not pair or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(
            "guidance_interval must be two noise levels from 0 to 1, the lower one first, not "
            f"{interval}"
        )


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
    check_interval(interval)
    levels = noise_levels(scheduler, timesteps)
    return [guidance_scale if interval[0] <= x <= interval[1] else 1.0 for x in levels]
