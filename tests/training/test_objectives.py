"""Noise, target and weights of each objective, compared with formulas and with diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from hf_latent.data.latents.cache import LatentBatch
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline.encode import LatentPosteriors
from hf_latent.training.denoiser import draw_batch
from hf_latent.training.losses import denoising_loss
from hf_latent.training.run.batches import ProcessRows, ShardedDraws

COUNT, SHAPE = 64, (4, 3, 5)
PLACE = (7, 1)
DISCRETE = ("epsilon", "v_prediction", "sample")
RESCALED = ("v_prediction", "sample")


def make_posteriors() -> LatentPosteriors:
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.rand(2, COUNT, *SHAPE, generator=generator)
    return LatentPosteriors(mean * 2 - 1, std)


def draw(config):
    """Return a training batch, the latents and the noise in it, and what its timesteps are from."""
    scheduler = create_scheduler(config.objective, config.zero_terminal_snr)
    posteriors = make_posteriors()
    batch = LatentBatch(posteriors, {})
    draws = ShardedDraws(config.seed, "denoiser", ProcessRows(COUNT), torch.device("cpu"))
    noised, conditions = draw_batch(config, scheduler, batch, {}, draws, PLACE)
    assert conditions == {}
    values = draws.normal(PLACE, 2 + 2 * torch.Size(SHAPE).numel())
    posterior_noise, noise = values[:, 2:].reshape(COUNT, 2, *SHAPE).unbind(1)
    latents = posteriors.mean + posteriors.std * posterior_noise
    return noised, latents, noise, values[:, 0]


def alphas_cumprod(zero_terminal_snr: bool) -> torch.Tensor:
    """LDM's schedule, and algorithm 1 of Lin et al. 2024, in float64."""
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2


def reference(config) -> DDPMScheduler:
    """Another diffusers scheduler with the same noise schedule."""
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        prediction_type=config.objective,
    )


CASES = [(objective, False) for objective in DISCRETE] + [(name, True) for name in RESCALED]


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize(("objective", "zero_terminal_snr"), CASES)
def test_discrete_objectives(denoiser_config, objective, zero_terminal_snr, snr_gamma):
    config = denoiser_config(
        objective=objective, zero_terminal_snr=zero_terminal_snr, snr_gamma=snr_gamma
    )
    noised, latents, noise, normal = draw(config)
    expected = (1000 * torch.special.ndtr(normal.double())).floor().long()
    assert torch.equal(noised.timesteps, expected)

    signal = alphas_cumprod(zero_terminal_snr)[noised.timesteps]
    alpha, sigma = (x.sqrt().float().view(-1, 1, 1, 1) for x in (signal, 1 - signal))
    # The rounding errors of 1000 float32 factors add up.
    close = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(noised.noisy_latents, alpha * latents + sigma * noise, **close)
    target = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * latents,
        "sample": latents,
    }[objective]
    torch.testing.assert_close(noised.target, target, **close)
    snr = signal / (1 - signal)
    weights = torch.ones(COUNT, dtype=torch.float64)
    if snr_gamma is not None:
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[objective]
        weights = snr.clamp(max=snr_gamma) / divisor
    torch.testing.assert_close(noised.weights, weights.float(), rtol=1e-3, atol=1e-5)

    theirs = reference(config)
    expected = theirs.add_noise(latents, noise, noised.timesteps)
    torch.testing.assert_close(noised.noisy_latents, expected, **close)
    velocity = theirs.get_velocity(latents, noise, noised.timesteps)
    if objective == "v_prediction":
        torch.testing.assert_close(noised.target, velocity, **close)
    if snr_gamma is not None and not zero_terminal_snr:
        snr = compute_snr(theirs, noised.timesteps)
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[objective]
        expected = torch.minimum(snr, torch.full_like(snr, snr_gamma)) / divisor
        torch.testing.assert_close(noised.weights, expected)

    output = torch.randn(COUNT, *SHAPE)
    found = denoising_loss(output, noised.target, noised.weights)
    each = torch.nn.functional.mse_loss(output, target, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(found, (each * weights.float()).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sigmas_of"),
    [
        ({}, torch.sigmoid),
        (
            {
                "timestep_sampling": "logit_normal",
                "timestep_logit_mean": 0.5,
                "timestep_logit_std": 1.5,
            },
            lambda normal: torch.sigmoid(0.5 + 1.5 * normal),
        ),
        ({"timestep_sampling": "uniform"}, torch.special.ndtr),
    ],
)
def test_flow(denoiser_config, changes, sigmas_of):
    config = denoiser_config(**changes)
    noised, latents, noise, normal = draw(config)
    sigmas = sigmas_of(normal)
    torch.testing.assert_close(noised.timesteps, sigmas * 1000)
    sigmas = sigmas.view(-1, 1, 1, 1)
    torch.testing.assert_close(noised.noisy_latents, (1 - sigmas) * latents + sigmas * noise)
    torch.testing.assert_close(noised.target, noise - latents)
    assert torch.equal(noised.weights, torch.ones(COUNT))
    # The velocity of the path: diffusers' Euler step along it ends at the latents.
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[1.0])
    ended = theirs.step(noise - latents, theirs.timesteps[0], noise).prev_sample
    torch.testing.assert_close(ended, latents, rtol=0, atol=1e-6)

    output = torch.randn(COUNT, *SHAPE)
    found = denoising_loss(output, noised.target, noised.weights)
    torch.testing.assert_close(found, torch.nn.functional.mse_loss(output, noise - latents))
