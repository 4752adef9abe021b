"""Step 2 of 4: latents to noisy latents, with the target that the denoiser should predict."""

import inspect
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import SchedulerMixin
from diffusers.training_utils import compute_snr


@dataclass(frozen=True)
class NoisedLatents:
    """The denoiser's input, and all that its loss needs.

    Attributes:
        noisy_latents: `(B, c, h, w)` float, the denoiser's input.
        timesteps: `(B,)`, the scheduler's own: int64 for discrete schedules, float32 in [0, 1000]
            for flow.
        target: `(B, c, h, w)` float, what the denoiser should predict.
        weights: `(B,)` float32, each image's weight in the loss.
    """

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "NoisedLatents":
        """Move all four tensors to a device."""
        tensors = (self.noisy_latents, self.timesteps, self.target, self.weights)
        return NoisedLatents(*(x.to(device, non_blocking=non_blocking) for x in tensors))


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Return whether a scheduler is for the flow objective."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        return True
    is_predicted = scheduler.config.get("prediction_type") == "flow_prediction"
    return is_predicted and _takes_flow_sigmas(type(scheduler))  # type: ignore[arg-type]


@cache
def _takes_flow_sigmas(scheduler_class: type[SchedulerMixin]) -> bool:
    # A configuration may have entries of another class, from which `from_config` made it.
    return "use_flow_sigmas" in inspect.signature(scheduler_class.__init__).parameters


def mix_noise(
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """Return the noisy latents of `add_noise`, `(B, c, h, w)`, for any sampler."""
    if not is_flow(scheduler):
        return scheduler.add_noise(latents, noise, timesteps)
    sigmas = (timesteps / scheduler.config.num_train_timesteps).view(-1, 1, 1, 1).to(latents)
    return (1 - sigmas) * latents + sigmas * noise


def add_noise(
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None = None,
) -> NoisedLatents:
    """Mix latents and noise at given timesteps, and return the denoiser's target with them.

    Flow (rectified flow, Liu et al. 2023, equation 1; Esser et al. 2024, equation 13):
    `sigma = timesteps / num_train_timesteps`, `noisy = (1 - sigma) latents + sigma noise`,
    `target = noise - latents`. Otherwise the scheduler's own `add_noise`, and the target by its
    `prediction_type`. `snr_gamma` gives the min-SNR weights (Hang et al. 2023, section 3.4):
    `min(snr, gamma)` divided by 1 (sample), snr (epsilon) or snr + 1 (v_prediction).

    Args:
        scheduler: a stock scheduler; its configuration names the objective.
        latents: `(B, c, h, w)` float, unit variance.
        noise: `(B, c, h, w)` float, standard normal.
        timesteps: `(B,)`: int64 for discrete schedules, float in [0, num_train_timesteps] for flow.
        snr_gamma: the bound on the signal-to-noise ratio, 5 in the paper; None: weights are 1.

    Raises:
        ValueError: for snr_gamma with flow, or an unknown prediction type.
    """
    weights = torch.ones(len(latents), device=latents.device)
    noisy_latents = mix_noise(scheduler, latents, noise, timesteps)
    if is_flow(scheduler):
        if snr_gamma is not None:
            raise ValueError("snr_gamma is not defined for the flow objective: leave it unset")
        return NoisedLatents(noisy_latents, timesteps, noise - latents, weights)

    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        target = noise
    elif prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    elif prediction_type == "sample":
        target = latents
    else:
        raise ValueError(f"unknown prediction_type {prediction_type!r} in the scheduler")
    if snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps).to(latents.device)
        weights = {
            "epsilon": (snr_gamma / snr).clamp(max=1),  # 1 where the ratio is 0
            "v_prediction": snr.clamp(max=snr_gamma) / (snr + 1),
            "sample": snr.clamp(max=snr_gamma),
        }[prediction_type]
    return NoisedLatents(noisy_latents, timesteps, target, weights)
