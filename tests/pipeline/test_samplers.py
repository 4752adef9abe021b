import json
from itertools import product
from typing import get_args

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import add_noise, mix_noise
from hf_latent.pipeline.denoise import denoise_latents
from hf_latent.pipeline.samplers import (
    Sampler,
    check_sampler,
    compatible_samplers,
    create_sampler,
    get_objective,
    same_noise_levels,
    set_inference_steps,
)
from tests.conftest import make_denoiser
from tests.ideal_denoiser import PAIRS, TABLE, IdealDenoiser, scheduler_of
from tests.small import NARROW_DENOISER

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_samplers(name):
    scheduler = scheduler_of(name)
    assert compatible_samplers(scheduler) == TABLE[name]
    for sampler in set(get_args(Sampler)) - set(TABLE[name]):
        with pytest.raises(ValueError, match=f"sampler {sampler.replace('+', '.')} does not go"):
            create_sampler(scheduler, sampler)


@pytest.mark.parametrize("steps", [1, 2, 10, 15, 25, 60])
@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_an_ideal_denoiser_recovers_the_latent(name, sampler, steps):
    """At every step, the timestep also matches the noise that is left."""
    trained = scheduler_of(name)
    scheduler = create_sampler(trained, sampler)
    check_sampler(trained, scheduler)
    known, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if sampler == "ddim" and 1000 % steps:
        with pytest.raises(ValueError, match="needs steps of whole timesteps, and"):
            set_inference_steps(scheduler, steps, "cpu")
        return
    set_inference_steps(scheduler, steps, "cpu")
    start = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    denoiser = IdealDenoiser(known, trained)
    found = denoise_latents(denoiser, scheduler, start, scheduler.timesteps)
    torch.testing.assert_close(found, known, rtol=0, atol=2e-3)
    # Not closer: the first level may contain a little signal, which pure noise lacks.
    torch.testing.assert_close(denoiser.noise[0], noise, rtol=0, atol=5e-2)
    for there in denoiser.noise:
        torch.testing.assert_close(there, denoiser.noise[0], rtol=0, atol=2e-3)


def test_step_counts_with_wrong_noise_levels_are_refused():
    epsilon = create_scheduler("epsilon")
    for steps, numbers in ((15, "10 or 20"), (30, "25 or 40"), (999, "500 or 1000")):
        with pytest.raises(ValueError, match=f"use {numbers} steps, or the sampler euler, whose"):
            set_inference_steps(epsilon, steps, "cpu")
    linspace = PNDMScheduler(timestep_spacing="linspace")
    with pytest.raises(ValueError, match="linspace spacing are not whole: use the sampler euler"):
        set_inference_steps(linspace, 20, "cpu")
    for sampler in TABLE["epsilon"]:
        with pytest.raises(ValueError, match="has 1000 timesteps, too few for 1001 steps"):
            set_inference_steps(create_sampler(epsilon, sampler), 1001, "cpu")
    for sampler in ("euler", "heun", "dpm++", "unipc"):
        with pytest.raises(ValueError, match="rounds 61 steps to one step too many: use another"):
            set_inference_steps(create_sampler(epsilon, sampler), 61, "cpu")


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, PNDMScheduler])
def test_trailing_steps_of_a_foreign_model_may_have_any_number(scheduler_class, steps):
    scheduler = scheduler_class(steps_offset=1, timestep_spacing="leading", set_alpha_to_one=True)
    scheduler.register_to_config(clip_sample=False, skip_prk_steps=True)
    known, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    set_inference_steps(scheduler, steps, "cpu")
    denoiser = IdealDenoiser(known, scheduler)
    found = denoise_latents(denoiser, scheduler, noise, scheduler.timesteps)
    torch.testing.assert_close(found, known, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_samplers_can_start_in_the_middle(name, sampler):
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
def test_a_sampler_can_be_created_from_any_other(name, sampler):
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


def test_the_shift_of_flow_is_kept():
    trained = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert create_sampler(trained, "heun").config.shift == 3.0
    multistep = create_sampler(trained, "dpm++")
    assert multistep.config.flow_shift == 3.0
    assert create_sampler(multistep, "euler").config.shift == 3.0


@pytest.mark.parametrize(
    ("trained", "scheduler", "message"),
    [
        # from_config silently creates these from a flow model's scheduler.
        (
            "flow",
            DDIMScheduler.from_config(create_scheduler("flow").config),
            "objective flow_prediction",
        ),
        (
            "flow",
            DPMSolverMultistepScheduler(),
            "epsilon, and the denoiser was trained for flow",
        ),
        ("epsilon", FlowMatchEulerDiscreteScheduler(), "objective flow"),
        ("flow", UniPCMultistepScheduler(prediction_type="flow_prediction"), "other noise levels"),
        ("flow", FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "other noise levels"),
        ("epsilon", DDIMScheduler(clip_sample=False), "other noise levels"),
        (
            "v_prediction",
            EulerDiscreteScheduler.from_config(create_scheduler("sample").config),
            "objective sample",
        ),
        (
            "v_prediction",
            create_scheduler("v_prediction", zero_terminal_snr=True),
            "other noise levels",
        ),
        *(
            ("flow", scheduler_class(**FLOW | {f"use_{sigmas}": True}), "other noise levels")
            for scheduler_class, sigmas in (
                (DPMSolverMultistepScheduler, "karras_sigmas"),
                (DPMSolverMultistepScheduler, "lu_lambdas"),
                (UniPCMultistepScheduler, "exponential_sigmas"),
            )
        ),
        (
            "epsilon",
            DPMSolverMultistepScheduler.from_config(
                create_scheduler("epsilon").config, use_flow_sigmas=True
            ),
            "other noise levels",
        ),
        (
            "v_prediction",
            EulerDiscreteScheduler.from_config(
                create_scheduler("v_prediction").config, timestep_type="continuous"
            ),
            "other noise levels",
        ),
        ("epsilon", IPNDMScheduler(), "IPNDMScheduler does not say what the denoiser predicts"),
        (
            "epsilon",
            DDPMScheduler.from_config(create_scheduler("epsilon").config, clip_sample=True),
            "DDPMScheduler has clip_sample=True",
        ),
    ],
)
def test_schedulers_that_make_wrong_images_are_refused(trained, scheduler, message):
    with pytest.raises(ValueError, match=message):
        check_sampler(create_scheduler(trained), scheduler)


def test_other_stock_schedulers_are_accepted_if_they_fit():
    trained = create_scheduler("epsilon")
    check_sampler(trained, EulerAncestralDiscreteScheduler.from_config(trained.config))
    check_sampler(trained, DDPMScheduler.from_config(trained.config))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "unipc", "ddim"])
@pytest.mark.parametrize(
    "trained", [DDPMScheduler(), DDIMScheduler(clip_sample=True), PNDMScheduler()]
)
def test_defaults_of_the_trained_scheduler_are_kept_but_not_its_clipping(trained, sampler):
    made = create_sampler(trained, sampler)
    assert torch.equal(made.alphas_cumprod, trained.alphas_cumprod)
    for name in ("prediction_type", "timestep_spacing"):
        assert made.config[name] == trained.config[name]
    assert not made.config.get("clip_sample", False)
    check_sampler(trained, made)
    check_sampler(trained, trained)  # a model's own scheduler is taken as it is
    assert same_noise_levels(trained, type(trained).from_config(trained.config))


def test_a_schedule_that_a_sampler_does_not_support_is_refused():
    with pytest.raises(ValueError, match="sampler euler does not go with this model: sigmoid"):
        create_sampler(DDPMScheduler(beta_schedule="sigmoid"), "euler")


def test_the_saved_scheduler_determines_the_objective_if_another_is_given(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    other = DDIMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match="trained for flow"):
        LatentDiffusionPipeline.from_pretrained(tmp_path, scheduler=other)
    other = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, scheduler=other)
    with pytest.raises(ValueError, match="other noise levels"):
        loaded([0])
    loaded.use_sampler("heun")
    loaded.set_progress_bar_config(disable=True)
    assert loaded([0], num_inference_steps=2).images


@pytest.mark.parametrize("way", ["diffusers", "from_pipe", "from_pipe later", "constructor"])
def test_a_model_keeps_its_objective_in_every_new_pipeline(pipeline, tmp_path, way):
    """Plain diffusers calls the constructor with the entries of model_index.json only."""
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["objective"] == "flow"
    other = DDIMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match="epsilon, and the denoiser was trained for flow"):
        if way == "diffusers":
            load = DiffusionPipeline.from_pretrained
            load(tmp_path, trust_remote_code=True, scheduler=other)
        elif way == "from_pipe":
            LatentDiffusionPipeline.from_pipe(pipeline, scheduler=other)
        elif way == "from_pipe later":
            pipeline.scheduler = other
            LatentDiffusionPipeline.from_pipe(pipeline)
        else:
            parts = pipeline.components | {"scheduler": other}
            LatentDiffusionPipeline(**parts, objective=pipeline.config.objective)


def test_from_pipe_keeps_the_noise_levels_that_the_denoiser_was_trained_on(pipeline):
    pipeline.use_sampler("heun")
    assert type(LatentDiffusionPipeline.from_pipe(pipeline).trained_scheduler) is (
        UniPCMultistepScheduler
    )
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    again = LatentDiffusionPipeline.from_pipe(pipeline)
    with pytest.raises(ValueError, match="other noise levels"):
        again([0])


def test_a_model_saved_without_an_objective_has_its_schedulers(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "old")
    index = json.loads((tmp_path / "old" / "model_index.json").read_text())
    del index["objective"]
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index))
    load = LatentDiffusionPipeline.from_pretrained
    with pytest.raises(ValueError, match="epsilon, and the denoiser was trained for flow"):
        load(tmp_path / "old", scheduler=DDIMScheduler(clip_sample=False))
    for given in ({}, {"scheduler": create_sampler(pipeline.trained_scheduler, "heun")}):
        loaded = load(tmp_path / "old", **given)
        assert loaded.config.objective == "flow"
        loaded.save_pretrained(tmp_path / "new")
        assert load(tmp_path / "new").config.objective == "flow"


def test_another_denoiser_may_have_another_objective(pipeline, tmp_path):
    parts = {"unet": make_denoiser(pipeline.vae), "scheduler": create_scheduler("epsilon")}
    pipeline.save_pretrained(tmp_path)
    for made in (
        LatentDiffusionPipeline.from_pipe(pipeline, **parts),
        LatentDiffusionPipeline.from_pretrained(tmp_path, **parts),
    ):
        assert made.config.objective == get_objective(made.trained_scheduler) == "epsilon"


def test_a_scheduler_without_an_objective_is_refused(vae):
    with pytest.raises(ValueError, match="IPNDMScheduler does not say what the denoiser predicts"):
        LatentDiffusionPipeline(vae, make_denoiser(vae), IPNDMScheduler())


def test_a_scheduler_that_does_not_fit_is_not_saved(pipeline, tmp_path):
    pipeline.scheduler = DDIMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match="trained for flow"):
        pipeline.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_scheduler_changed_in_place_is_noticed(vae):
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("v_prediction"))
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="trained for v_prediction"):
        pipeline([0])


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_noise_is_added_as_in_the_training_whatever_the_sampler(vae, name, sampler):
    trained = scheduler_of(name)
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), scheduler_of(name))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.use_sampler(sampler)
    latents, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    pipeline(0, image_latents=latents, strength=0.5, num_inference_steps=4)  # leaves it in a state
    timesteps = torch.tensor([10, 500, 999])
    timesteps = timesteps.float() if name == "flow" else timesteps
    found = pipeline.add_noise(latents, noise, timesteps)
    expected = add_noise(trained, latents, noise, timesteps)
    torch.testing.assert_close(found.noisy_latents, expected.noisy_latents)
    torch.testing.assert_close(found.target, expected.target)


def test_unknown_sampler():
    with pytest.raises(ValueError, match="no sampler 'plms': use euler, heun"):
        create_sampler(create_scheduler("flow"), "plms")


def test_a_pipeline_refuses_a_scheduler_that_does_not_fit(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"use pipeline.use_sampler\(name\)"):
        pipeline([0])
    pipeline.use_sampler("dpm++")
    assert pipeline([0], num_inference_steps=2).images


def test_samplers_of_one_objective_agree_after_many_steps(vae):
    small = {"block_out_channels": (16,), "attention": (True,)}  # of one level: 1,800 evaluations
    unet = create_denoiser("tiny", vae, (1, 16, 16), 3, **NARROW_DENOISER | small).eval()
    noise = torch.randn(2, 4, 4, 4)
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
