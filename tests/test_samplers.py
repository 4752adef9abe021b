from itertools import product
from typing import get_args

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hf_latent.add_noise import mix_noise
from hf_latent.denoise import denoise_latents, set_inference_steps
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.samplers import (
    Sampler,
    check_sampler,
    compatible_samplers,
    create_sampler,
    get_objective,
)
from tests.conftest import make_denoiser
from tests.ideal_denoiser import IdealDenoiser

# The whole table: what goes with what. All else is refused.
TABLE = {
    "flow": ["euler", "heun", "dpm++", "unipc"],
    "epsilon": ["euler", "heun", "dpm++", "unipc", "ddim"],
    "v_prediction": ["euler", "heun", "dpm++", "unipc", "ddim"],
    "sample": ["euler", "dpm++", "unipc", "ddim"],
    "v_prediction, zero terminal SNR": ["euler", "dpm++", "unipc", "ddim"],
    "sample, zero terminal SNR": ["euler", "dpm++", "unipc", "ddim"],
}
PAIRS = [(name, sampler) for name, samplers in TABLE.items() for sampler in samplers]


def scheduler_of(name: str):
    objective, _, zero = name.partition(", ")
    return create_scheduler(objective, zero_terminal_snr=bool(zero))


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    scheduler = scheduler_of(name)
    assert compatible_samplers(scheduler) == TABLE[name]
    for sampler in set(get_args(Sampler)) - set(TABLE[name]):
        with pytest.raises(ValueError, match=f"sampler {sampler.replace('+', '.')} does not go"):
            create_sampler(scheduler, sampler)


@pytest.mark.parametrize("steps", [1, 2, 10, 25])
@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_an_ideal_denoiser_recovers_the_latent(name, sampler, steps):
    trained = scheduler_of(name)
    scheduler = create_sampler(trained, sampler)
    check_sampler(trained, scheduler)
    known, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    set_inference_steps(scheduler, steps, "cpu")
    start = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    found = denoise_latents(IdealDenoiser(known, trained), scheduler, start, scheduler.timesteps)
    torch.testing.assert_close(found, known, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_it_goes_on_from_the_middle(name, sampler):
    trained = scheduler_of(name)
    scheduler = create_sampler(trained, sampler)
    known, other, noise = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    set_inference_steps(scheduler, 10, "cpu")
    skipped = 4 * scheduler.order
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    start = mix_noise(scheduler, other, noise, timesteps[:1].expand(3))
    found = denoise_latents(IdealDenoiser(known, trained), scheduler, start, timesteps)
    torch.testing.assert_close(found, known, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_a_sampler_can_be_made_of_any_other(name, sampler):
    trained = scheduler_of(name)
    made = create_sampler(trained, sampler)
    for again in TABLE[name]:
        direct, around = create_sampler(trained, again), create_sampler(made, again)
        assert type(direct) is type(around)
        differing = {
            key: (value, around.config[key])
            for key, value in direct.config.items()
            if value != around.config[key] and not key.startswith("_")
        }
        assert not differing


def test_the_shift_of_flow_is_carried_over():
    trained = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert create_sampler(trained, "heun").config.shift == 3.0
    multistep = create_sampler(trained, "dpm++")
    assert multistep.config.flow_shift == 3.0
    assert create_sampler(multistep, "euler").config.shift == 3.0


@pytest.mark.parametrize(
    ("trained", "scheduler", "message"),
    [
        # What from_config silently makes of a flow model's scheduler.
        ("flow", DDIMScheduler.from_config(create_scheduler("flow").config), "answer for epsilon"),
        ("flow", DPMSolverMultistepScheduler(), "answer for epsilon, and it was trained for flow"),
        ("epsilon", FlowMatchEulerDiscreteScheduler(), "answer for flow"),
        ("flow", UniPCMultistepScheduler(prediction_type="flow_prediction"), "other noise levels"),
        ("flow", FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "other noise levels"),
        ("epsilon", DDIMScheduler(clip_sample=False), "other noise levels"),
        (
            "v_prediction",
            EulerDiscreteScheduler.from_config(create_scheduler("sample").config),
            "answer for sample",
        ),
        (
            "v_prediction",
            create_scheduler("v_prediction", zero_terminal_snr=True),
            "other noise levels",
        ),
        (
            "epsilon",
            DDPMScheduler.from_config(create_scheduler("epsilon").config, clip_sample=True),
            "DDPMScheduler has clip_sample=True",
        ),
    ],
)
def test_schedulers_that_would_make_wrong_images_are_refused(trained, scheduler, message):
    with pytest.raises(ValueError, match=message):
        check_sampler(create_scheduler(trained), scheduler)


def test_other_stock_schedulers_are_taken_where_they_fit():
    trained = create_scheduler("epsilon")
    check_sampler(trained, EulerAncestralDiscreteScheduler.from_config(trained.config))
    check_sampler(trained, DDPMScheduler.from_config(trained.config))


def test_unknown_sampler():
    with pytest.raises(ValueError, match="no sampler 'plms': use euler, heun"):
        create_sampler(create_scheduler("flow"), "plms")


def test_a_pipeline_refuses_a_scheduler_that_does_not_fit(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"use pipeline.use_sampler\(name\)"):
        pipeline([0])
    pipeline.use_sampler("dpm++")
    assert pipeline([0], num_inference_steps=2).images


def test_pipelines_with_one_step_more_come_nearer_to_each_other(vae):
    """Samplers of one objective solve one equation: with many steps they agree."""
    unet, noise = make_denoiser(vae), torch.randn(2, 4, 4, 4)
    for objective, samplers in list(TABLE.items())[:3]:
        pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler(objective))
        pipeline.set_progress_bar_config(disable=True)
        found = []
        for sampler in samplers:
            pipeline.use_sampler(sampler)
            latents = pipeline([0, 1], latents=noise, num_inference_steps=100, output_type="latent")
            found.append(latents.images)
        for (a, x), (b, y) in product(zip(samplers, found, strict=True), repeat=2):
            assert (x - y).abs().mean() < 0.02 * x.abs().mean(), (objective, a, b)


def test_a_sampler_is_saved_with_the_pipeline(pipeline, tmp_path):
    pipeline.use_sampler("unipc")
    pipeline.save_pretrained(tmp_path)
    again = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again.scheduler, UniPCMultistepScheduler)
    assert get_objective(again.scheduler) == "flow"
    again.use_sampler("euler")
    assert isinstance(again.scheduler, FlowMatchEulerDiscreteScheduler)
