from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import denoise
from hf_latent.pipeline.conditions import null_conditions
from hf_latent.pipeline.denoise import denoise_latents, predict
from hf_latent.pipeline.samplers import create_sampler, set_inference_steps
from tests.conftest import make_denoiser
from tests.ideal_denoiser import IdealDenoiser


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchHeunDiscreteScheduler(),
        DDIMScheduler(clip_sample=False, set_alpha_to_one=True),
    ],
    ids=["euler", "shifted_euler", "heun", "ddim"],
)
@pytest.mark.parametrize("steps", [1, 7])
def test_ideal_denoiser_recovers_the_latent(scheduler, steps):
    known, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps)
    start = noise
    if isinstance(scheduler, DDIMScheduler):
        start = scheduler.add_noise(known, noise, scheduler.timesteps[:1])
    found = denoise_latents(IdealDenoiser(known, scheduler), scheduler, start, scheduler.timesteps)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-4)


def replaced(latents):
    return torch.ones_like(latents)


def changed_in_place(latents):
    return latents.copy_(replaced(latents))


class StillDenoiser(IdealDenoiser):
    """Predicts a velocity of 0, so that steps of a flow change nothing."""

    def forward(self, sample, timestep, class_labels=None):
        return SimpleNamespace(sample=torch.zeros_like(sample))


@pytest.mark.parametrize("change", [replaced, changed_in_place])
@pytest.mark.parametrize("sampler", ["euler", "dpm++", "unipc"])
def test_a_change_of_the_latents_stays(sampler, change):
    """UniPC's correction of its last step would undo most of it."""
    scheduler = create_sampler(create_scheduler("flow"), sampler)
    set_inference_steps(scheduler, 8, "cpu")
    latents = torch.zeros(2, 4, 8, 8)
    found = denoise_latents(
        *(StillDenoiser(latents, scheduler), scheduler, latents, scheduler.timesteps),
        after_step=lambda i, t, latents: change(latents) if i == 1 else latents,
    )
    # Multistep samplers also go on from the predictions of before.
    torch.testing.assert_close(found, replaced(found), rtol=0, atol=0.2)


@pytest.mark.parametrize("objective", ["flow", "epsilon"])
def test_unipc_adds_a_change_to_what_it_corrects(objective, monkeypatch):
    """The same as a scheduler whose correction ends with the change added."""
    trained, change = create_scheduler(objective), torch.randn(1, 4, 8, 8)
    unet = IdealDenoiser(torch.randn(2, 4, 8, 8), trained)
    noise = torch.randn(2, 4, 8, 8)

    def draw(change_correction: bool) -> torch.Tensor:
        scheduler = create_sampler(trained, "unipc")
        set_inference_steps(scheduler, 5, "cpu")
        correct, corrected = scheduler.multistep_uni_c_bh_update, []

        def add_change(**arguments):
            corrected.append(1)
            return correct(**arguments) + (change if len(corrected) == 2 else 0)

        if change_correction:
            monkeypatch.setattr(denoise, "_carry_change", lambda scheduler, change: None)
            scheduler.multistep_uni_c_bh_update = add_change
        states = []

        def after_step(i, t, latents):
            states.append(latents + change if i == 1 else latents)
            return states[-1]

        denoise_latents(unet, scheduler, noise, scheduler.timesteps, after_step=after_step)
        return torch.stack(states)

    found = draw(change_correction=False)
    torch.testing.assert_close(found, draw(change_correction=True), rtol=0, atol=1e-4)


def test_flow_steps_are_equal_and_none_is_wasted():
    scheduler = FlowMatchEulerDiscreteScheduler()
    set_inference_steps(scheduler, 4, "cpu")
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([1000.0, 750, 500, 250]))
    shifted = FlowMatchEulerDiscreteScheduler(shift=3.0)
    set_inference_steps(shifted, 2, "cpu")
    torch.testing.assert_close(shifted.sigmas, torch.tensor([1, 0.75, 0]))


def test_flow_heun_steps_are_equal_and_none_is_wasted():
    scheduler = FlowMatchHeunDiscreteScheduler()
    for _ in range(2):  # the second time too
        set_inference_steps(scheduler, 4, "cpu")
        expected = torch.tensor([1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0])
        torch.testing.assert_close(scheduler.sigmas, expected)
        torch.testing.assert_close(scheduler.timesteps, 1000 * expected[:-1])
    set_inference_steps(scheduler, 1, "cpu")
    assert scheduler.timesteps.tolist() == [1000]


@pytest.mark.parametrize("scheduler_class", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_flow_timesteps_are_not_truncated_to_integers(scheduler_class):
    scheduler = scheduler_class(prediction_type="flow_prediction", use_flow_sigmas=True)
    set_inference_steps(scheduler, 7, "cpu")
    assert scheduler.timesteps.is_floating_point()
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(), DDIMScheduler()])
def test_other_schedulers_choose_their_own_steps(scheduler):
    set_inference_steps(scheduler, 3, "cpu")
    timesteps = scheduler.timesteps.clone()
    scheduler.set_timesteps(3)
    assert torch.equal(scheduler.timesteps, timesteps)
    with pytest.raises(ValueError, match="at least 1"):
        set_inference_steps(scheduler, 0, "cpu")


def test_after_step_can_replace_the_latents():
    known, noise = torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    seen = []

    def after_step(i, t, latents):
        seen.append((i, t.item(), latents.clone()))
        return latents if i < 2 else latents + 7

    found = denoise_latents(
        IdealDenoiser(known, scheduler),
        scheduler,
        noise,
        scheduler.timesteps,
        after_step=after_step,
    )
    assert [i for i, _, _ in seen] == [0, 1, 2]
    assert [t for _, t, _ in seen] == scheduler.timesteps.tolist()
    torch.testing.assert_close(found, known + 7, rtol=0, atol=1e-5)


def test_guidance_is_one_batched_call_and_follows_the_formula(vae):
    unet = make_denoiser(vae)
    latents, labels = torch.randn(2, 4, 4, 4), torch.tensor([0, 2])
    t = torch.tensor(500.0)
    conditional = unet(latents, t, class_labels=labels).sample
    unconditional = unet(latents, t, class_labels=torch.tensor([3, 3])).sample
    expected = unconditional + 2.5 * (conditional - unconditional)
    conditions, null = {"class_labels": labels}, null_conditions(unet, 2, "cpu")
    for timesteps in (t, t.expand(2)):
        guided = predict(unet, latents, timesteps, conditions, 2.5, null)
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", [None, 1, 1.0])
def test_no_second_branch_if_guidance_is_off(guidance):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    unet = IdealDenoiser(torch.zeros(2, 4, 8, 8), scheduler)
    labels = torch.tensor([0, 1])
    noise = torch.randn(2, 4, 8, 8)
    denoise_latents(unet, scheduler, noise, scheduler.timesteps, {"class_labels": labels}, guidance)
    assert [count for count, _ in unet.calls] == [2, 2]
    assert all(torch.equal(called, labels) for _, called in unet.calls)


def test_each_step_can_have_its_own_guidance(vae):
    unet, scheduler = make_denoiser(vae), FlowMatchEulerDiscreteScheduler()
    noise, labels = torch.randn(2, 4, 4, 4), {"class_labels": torch.tensor([0, 2])}
    null = null_conditions(unet, 2, "cpu")
    set_inference_steps(scheduler, 2, "cpu")
    found = denoise_latents(unet, scheduler, noise, scheduler.timesteps, labels, [3.0, 1.0], null)
    with torch.no_grad():
        first = noise - 0.5 * predict(unet, noise, torch.tensor(1000.0), labels, 3.0, null)
        expected = first - 0.5 * predict(unet, first, torch.tensor(500.0), labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    set_inference_steps(scheduler, 2, "cpu")
    for scales in ([3.0], [3.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="guidance scales do not fit 2 timesteps"):
            denoise_latents(unet, scheduler, noise, scheduler.timesteps, labels, scales)


def test_guidance_needs_labels(vae):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="guidance needs conditions, such as class labels"):
        denoise_latents(
            make_denoiser(vae, None),
            scheduler,
            torch.zeros(1, 4, 4, 4),
            scheduler.timesteps,
            guidance=2.0,
        )


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 4, 4), "3 channels"), ((1, 4, 5, 4), "multiples of 2, and those of the image")],
)
def test_latents_that_do_not_fit_are_refused(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        denoise_latents(
            make_denoiser(vae), FlowMatchEulerDiscreteScheduler(), torch.zeros(shape), []
        )


def test_no_gradient_is_kept(vae):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    latents = torch.zeros(1, 4, 4, 4)
    found = denoise_latents(
        make_denoiser(vae),
        scheduler,
        latents,
        scheduler.timesteps,
        {"class_labels": torch.tensor([0])},
    )
    assert not found.requires_grad
