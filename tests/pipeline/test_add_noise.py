import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline.add_noise import add_noise, is_flow

LATENTS, NOISE = torch.randn(2, 5, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def test_flow_noise_equals_diffusers_scale_noise_on_its_grid():
    scheduler = FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[0, 100, 500, 900, 999]]
    expected = scheduler.scale_noise(LATENTS, timesteps, NOISE)
    noised = add_noise(scheduler, LATENTS, NOISE, timesteps)
    torch.testing.assert_close(noised.noisy_latents, expected)
    torch.testing.assert_close(noised.target, NOISE - LATENTS, rtol=0, atol=0)
    torch.testing.assert_close(noised.weights, torch.ones(5), rtol=0, atol=0)


def test_flow_noise_between_the_grid_and_at_its_ends():
    timesteps = torch.tensor([0.0, 123.456, 500.0, 999.9, 1000.0])
    noised = add_noise(create_scheduler("flow"), LATENTS, NOISE, timesteps)
    torch.testing.assert_close(noised.noisy_latents[0], LATENTS[0], rtol=0, atol=0)
    torch.testing.assert_close(noised.noisy_latents[4], NOISE[4], rtol=0, atol=0)
    expected = (1 - 0.123456) * LATENTS[1] + 0.123456 * NOISE[1]
    torch.testing.assert_close(noised.noisy_latents[1], expected)


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_discrete_noise_and_targets_follow_the_scheduler(scheduler_class, prediction_type):
    scheduler = scheduler_class(prediction_type=prediction_type)
    timesteps = torch.tensor([0, 10, 300, 700, 999])
    noised = add_noise(scheduler, LATENTS, NOISE, timesteps)
    expected = scheduler.add_noise(LATENTS, NOISE, timesteps)
    torch.testing.assert_close(noised.noisy_latents, expected, rtol=0, atol=0)
    alpha = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    targets = {
        "epsilon": NOISE,
        "v_prediction": alpha * NOISE - sigma * LATENTS,
        "sample": LATENTS,
    }
    torch.testing.assert_close(noised.target, targets[prediction_type])


def test_min_snr_weights():
    timesteps = torch.tensor([0, 10, 300, 700, 999])
    for prediction_type, power in (("epsilon", 1), ("sample", 0)):
        scheduler = DDIMScheduler(prediction_type=prediction_type)
        snr = compute_snr(scheduler, timesteps)
        weights = add_noise(scheduler, LATENTS, NOISE, timesteps, snr_gamma=5.0).weights
        torch.testing.assert_close(weights, snr.clamp(max=5) / snr**power)
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    weights = add_noise(scheduler, LATENTS, NOISE, timesteps, snr_gamma=5.0).weights
    torch.testing.assert_close(weights, snr.clamp(max=5) / (snr + 1))


def test_min_snr_weights_are_finite_where_the_ratio_is_zero():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    timesteps = torch.tensor([999])
    assert compute_snr(scheduler, timesteps) == 0
    weights = add_noise(scheduler, LATENTS[:1], NOISE[:1], timesteps, snr_gamma=5.0).weights
    assert weights.tolist() == [1.0]


def test_min_snr_is_refused_for_flow():
    with pytest.raises(ValueError, match="snr_gamma is not defined"):
        add_noise(create_scheduler("flow"), LATENTS, NOISE, torch.ones(5), snr_gamma=5.0)


def test_unknown_prediction_type_is_refused():
    scheduler = DDIMScheduler(prediction_type="score")
    with pytest.raises(ValueError, match="'score'"):
        add_noise(scheduler, LATENTS, NOISE, torch.ones(5, dtype=torch.int64))


def test_is_flow():
    assert is_flow(create_scheduler("flow"))
    assert not any(is_flow(create_scheduler(o)) for o in ("epsilon", "v_prediction", "sample"))
