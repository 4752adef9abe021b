"""Every stock scheduler of diffusers finds what an ideal denoiser knows, or is refused."""

import inspect
from importlib.util import find_spec

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SASolverScheduler,
)

from hf_latent.errors import UserError
from hf_latent.experiments.generate import GenerateConfig, generate
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import check_removes_noise
from tests.conftest import make_denoiser
from tests.ideal_denoiser import IdealDenoiser

CLASSES = sorted(x for x in dir(diffusers) if x.endswith("Scheduler") and x[0].isupper())
OBJECTIVES = ("flow", "epsilon", "v_prediction", "sample")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# numpy warns thousands of times about what diffusers does.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# The first letters of the objectives of which a scheduler finds the latents in 5 steps.
RIGHT = {
    "DDIMParallelScheduler": "evs",
    "DDIMScheduler": "evs",
    "DDPMParallelScheduler": "evs",
    "DDPMScheduler": "evs",
    "DPMSolverMultistepScheduler": "fevs",
    "DPMSolverSinglestepScheduler": "fevs",
    "EulerAncestralDiscreteScheduler": "ev",
    "EulerDiscreteScheduler": "evs",
    "FlowMatchEulerDiscreteScheduler": "f",
    "FlowMatchHeunDiscreteScheduler": "f",
    "FlowMatchLCMScheduler": "f",
    "HeunDiscreteScheduler": "evs",
    "KDPM2AncestralDiscreteScheduler": "ev",
    "KDPM2DiscreteScheduler": "ev",
    "LCMScheduler": "evs",
    "LMSDiscreteScheduler": "evs" if find_spec("scipy") else "",
    "PNDMScheduler": "e",
    "UniPCMultistepScheduler": "fevs",
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_stock_scheduler_finds_the_latents_or_is_refused(vae, name):
    right = ""
    for objective in OBJECTIVES:
        trained = create_scheduler(objective)
        pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae, None), trained)
        pipeline.set_progress_bar_config(disable=True)
        known, noise = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        pipeline.unet.forward = IdealDenoiser(known, trained).forward
        try:
            pipeline.scheduler = from_config(getattr(diffusers, name), objective, trained.config)
        except (ImportError, NotImplementedError, TypeError, ValueError):
            continue  # diffusers itself refuses this configuration, or lacks a package
        arguments = {"generator": torch.Generator().manual_seed(1), "output_type": "latent"}
        try:
            found = pipeline(latents=noise, num_inference_steps=5, **arguments).images
        except ValueError as error:
            assert name in str(error)
            assert "\n" not in str(error)
            continue
        torch.testing.assert_close(found, known, rtol=0, atol=1e-2)
        right += objective[0]
    assert right == RIGHT.get(name, "")


def from_config(scheduler_class, objective: str, config):
    """The scheduler of a user who knows what the class needs for this objective."""
    changes = {"prediction_type": objective, "clip_sample": False, "thresholding": False}
    changes |= FLOW if objective == "flow" else {}
    known = inspect.signature(scheduler_class.__init__).parameters
    return scheduler_class.from_config(config, **{k: x for k, x in changes.items() if k in known})


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DEISMultistepScheduler(**FLOW), "DEISMultistepScheduler leaves 24% of the noise"),
        (SASolverScheduler(**FLOW), "SASolverScheduler leaves 24% of the noise"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "leaves (inf|nan)% of the noise"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "cannot make 5 steps"),
    ],
)
def test_schedulers_of_flow_that_leave_noise_are_refused(vae, tmp_path, scheduler, message):
    """Set, saved with the model and loaded again, or asked for on the command line."""
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae, None), create_scheduler("flow"))
    pipeline.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        pipeline(num_inference_steps=5)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        LatentDiffusionPipeline.from_pretrained(tmp_path)(num_inference_steps=5)
    config = GenerateConfig(
        model=str(tmp_path), num_inference_steps=5, output=str(tmp_path / "grid.png")
    )
    with pytest.raises(UserError, match=message):
        generate(config)


def test_a_foreign_model_may_end_at_its_first_noise_level():
    foreign = DDIMScheduler(clip_sample=True, set_alpha_to_one=False)
    check_removes_noise(foreign, foreign, 20)
    ours = DDIMScheduler(clip_sample=True)
    check_removes_noise(ours, ours, 20)


def test_the_check_draws_nothing_from_the_global_generator():
    trained = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    before = torch.get_rng_state()
    check_removes_noise(trained, trained, 5)
    assert torch.equal(torch.get_rng_state(), before)
