"""A sampler as tables of numbers, which a browser computes with in place of a scheduler.

Every deterministic stock scheduler is linear: the latents after a step are a weighted sum of the
noise and of the denoiser's outputs so far. So a number of steps is one small matrix.
"""

import copy
from typing import Any

import torch

from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import add_noise, is_flow, mix_noise
from hf_latent.pipeline.denoise import choose_sampling
from hf_latent.pipeline.samplers import (
    create_noising,
    create_sampler,
    guidance_by_step,
    noise_levels,
    set_inference_steps,
)

SLIDER_LEVELS = 101  # noise levels of a slider, from none to noise only


def tabulate_steps(
    pipeline: LatentDiffusionPipeline, sampler: str | None, num_inference_steps: int
) -> dict[str, Any]:
    """Return a sampler's steps as weights.

    Args:
        pipeline: the model; not changed.
        sampler: a name of `samplers.Sampler`; None: the model's own scheduler.
        num_inference_steps: the sampler's steps.

    Returns:
        For n evaluations of the denoiser, outputs o_1 to o_n, noise z, and latents x_0 to x_n:

        - `timesteps` (n), `levels` (n): what the denoiser is told, and the noise level in [0, 1];
        - `guided` (n): whether guidance acts, by the model's own interval;
        - `inputs`, `latents` (n each): row i has the weights of z, o_1, ..., o_i in the denoiser's
          i-th input, and of z, o_1, ..., o_{i+1} in x_{i+1};
        - `clean` (n): weights of the i-th input and of o_i in the prediction of the clean latents;
        - `kept` (n): weights of clean latents and noise at the level after the step, for samplers
          that do not scale their input (`unipc`, `dpm++`, `ddim`, and all of flow).
    """
    trained = pipeline.trained_scheduler
    scheduler = create_sampler(trained, sampler) if sampler else copy.deepcopy(trained)
    set_inference_steps(scheduler, num_inference_steps, "cpu")
    timesteps = scheduler.timesteps
    count = len(timesteps)
    # A unit vector for the noise and for each output; schedulers expect (B, C, H, W).
    units = torch.eye(count + 1, dtype=torch.float64).view(count + 1, 1, -1, 1, 1)
    latents = units[0] * getattr(scheduler, "init_noise_sigma", 1.0)
    inputs, outputs, clean, kept = [], [], [], []
    for i, t in enumerate(timesteps):
        scaled = latents
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(latents, t)
        inputs.append(scaled.flatten()[: i + 1].tolist())
        latents = scheduler.step(units[i + 1], t, latents).prev_sample
        outputs.append(latents.flatten()[: i + 2].tolist())
        clean.append(clean_weights(pipeline, t))
        following = timesteps[i + 1] if i + 1 < count else None
        kept.append([1.0, 0.0] if following is None else mixing_weights(pipeline, following))
    scale = 1 if pipeline.config.get("distilled") else 2  # all but 1 show which steps are guided
    _, guidance = choose_sampling(pipeline, True, guidance_scale=scale)
    scales = guidance_by_step(guidance, scheduler, timesteps)
    return {
        "timesteps": timesteps.tolist(),
        "levels": noise_levels(scheduler, timesteps).tolist(),
        "guided": [scale != 1 for scale in scales],
        "inputs": inputs,
        "latents": outputs,
        "clean": clean,
        "kept": kept,
    }


def mixing_weights(pipeline: LatentDiffusionPipeline, timestep: torch.Tensor) -> list[float]:
    """Return the weights of clean latents and of noise in noisy latents of a timestep."""
    noising = create_noising(pipeline.trained_scheduler)
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1).double()
    timesteps = _whole_if_discrete(pipeline, timestep)
    pairs = ((one, none), (none, one))
    return [mix_noise(noising, *pair, timesteps).item() for pair in pairs]


def clean_weights(pipeline: LatentDiffusionPipeline, timestep: torch.Tensor) -> list[float]:
    """Return the weights of noisy latents and of the output in the prediction of clean latents.

    With noisy = a clean + b noise and target = c clean + d noise it is
    (d noisy - b target) / (a d - b c), whatever the objective.
    """
    noising = create_noising(pipeline.trained_scheduler)
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1).double()
    timesteps = _whole_if_discrete(pipeline, timestep)
    of_clean = add_noise(noising, one, none, timesteps)
    of_noise = add_noise(noising, none, one, timesteps)
    a, c = of_clean.noisy_latents.item(), of_clean.target.item()
    b, d = of_noise.noisy_latents.item(), of_noise.target.item()
    return [d / (a * d - b * c), -b / (a * d - b * c)]


def tabulate_noising(pipeline: LatentDiffusionPipeline) -> list[list[float]]:
    """Return, from no noise to noise only, noise level and weights of clean latents and noise."""
    scheduler = pipeline.trained_scheduler
    last = scheduler.config.num_train_timesteps - (not is_flow(scheduler))
    timesteps = torch.linspace(0, last, SLIDER_LEVELS, dtype=torch.float64)
    noising = create_noising(scheduler)
    levels = noise_levels(noising, timesteps).tolist()
    return [
        [level, *mixing_weights(pipeline, t)] for level, t in zip(levels, timesteps, strict=True)
    ]


def _whole_if_discrete(pipeline: LatentDiffusionPipeline, timestep: torch.Tensor) -> torch.Tensor:
    timesteps = timestep.reshape(1).double()
    return timesteps if is_flow(pipeline.trained_scheduler) else timesteps.round().long()
