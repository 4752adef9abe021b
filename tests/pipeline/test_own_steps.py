"""A model's own number of steps, and models that were distilled to a few steps."""

import copy
import json
import os
import sys

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance, choose_sampling
from hf_latent.pipeline.samplers import create_sampler
from tests import forked
from tests.conftest import count_calls, draw_latents, make_denoiser, make_guide

OWN = {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.8)}
PLAIN_DIFFUSERS = """
import sys
sys.modules["hf_latent"] = None
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
calls = []
pipe.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
pipe([0, 1], output_type="latent")
assert calls == [2] * 4, calls
try:
    pipe([0, 1], num_inference_steps=20)
except ValueError as error:
    print(error)
"""


def test_the_number_of_steps_is_the_calls_the_models_or_20(pipeline):
    calls = count_calls(pipeline.unet)
    for own, given, made in ((None, None, 20), (5, None, 5), (5, 3, 3)):
        pipeline.register_to_config(num_inference_steps=own)
        draw_latents(pipeline, steps=given)
        noise = torch.randn(1, 4, 4, 4)
        pipeline.denoise_latents(noise, num_inference_steps=given)
        assert len(calls) == 2 * made
        calls.clear()


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(pipeline, steps):
    for use in (
        lambda: LatentDiffusionPipeline(**pipeline.components, num_inference_steps=steps),
        lambda: pipeline.denoise_latents(torch.randn(1, 4, 4, 4), steps),
    ):
        with pytest.raises(ValueError, match="num_inference_steps must be at least 1, not "):
            use()
    assert pipeline([0], num_inference_steps=1, output_type="latent").images.shape[0] == 1


def carry(pipeline, way, folder) -> LatentDiffusionPipeline:
    if way == "components":
        return LatentDiffusionPipeline(**pipeline.components)
    if way == "from_pipe":
        return LatentDiffusionPipeline.from_pipe(pipeline)
    pipeline.save_pretrained(folder)
    return LatentDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("way", ["components", "from_pipe", "saved"])
def test_both_settings_are_kept(pipeline, distilled, tmp_path, way):
    expected = draw_latents(distilled, [0, 1], steps=None)
    found = carry(distilled, way, tmp_path)
    assert (found.config.num_inference_steps, found.config.distilled) == (4, True)
    assert torch.equal(draw_latents(found, [0, 1], steps=None), expected)
    with pytest.raises(ValueError, match="num_inference_steps does not fit"):
        draw_latents(found, [0, 1], steps=20)
    again = carry(found, way, tmp_path / "again")
    assert torch.equal(draw_latents(again, [0, 1], steps=None), expected)


def test_a_model_without_them_is_saved_as_before(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert not {"num_inference_steps", "distilled", "guidance"} & index.keys()
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.config.num_inference_steps is None and loaded.config.distilled is None


def test_plain_diffusers_makes_the_same_steps_and_refuses_others(distilled, tmp_path):
    distilled.save_pretrained(tmp_path)
    known = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", PLAIN_DIFFUSERS, tmp_path]
    done = forked.run(command, cwd=tmp_path, env=known)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "was distilled for 4 steps of DPMSolverMultistepScheduler" in done.stdout


def test_another_denoiser_has_its_own_settings(pipeline, distilled, tmp_path):
    distilled.save_pretrained(tmp_path)
    teacher, student = make_denoiser(pipeline.vae), distilled.unet
    for make in (
        lambda unet: LatentDiffusionPipeline.from_pipe(distilled, unet=unet),
        lambda unet: LatentDiffusionPipeline.from_pretrained(tmp_path, unet=unet),
    ):
        assert draw_latents(make(teacher), [0], steps=7, num_images=2) is not None
        assert make(teacher).config.distilled is None
        assert make(student).config.distilled is True


def test_a_distilled_model_makes_eulers_steps_without_guidance(pipeline, distilled):
    pipeline.use_sampler("euler")
    expected = draw_latents(pipeline, [0, 1], steps=4, guidance_scale=1)
    calls = count_calls(distilled.unet)
    found = draw_latents(distilled, [0, 1], steps=None)
    assert calls == [2] * 4
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    for same in ({"guidance_scale": 1}, {"num_inference_steps": 4}):
        assert torch.equal(draw_latents(distilled, [0, 1], **{"steps": None} | same), found)
    assert choose_sampling(distilled, True) == (4, Guidance())


REFUSED = {
    "num_inference_steps": {"num_inference_steps": 5},
    "guidance_scale": {"guidance_scale": 1.5},
    "guidance_interval": {"guidance_interval": (0, 1)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_a_distilled_model_does_not_have_are_refused(distilled, name):
    noise, message = torch.randn(1, 4, 4, 4), f"^{name} does not fit: this model was distilled for"
    for use in (
        lambda: distilled([0], **REFUSED[name]),
        lambda: distilled(**REFUSED[name]),
        lambda: distilled.denoise_latents(noise, **REFUSED[name]),
        lambda: distilled.interpolate(0, 1, class_labels=[0], **REFUSED[name]),
    ):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(f"leave {name} as it was")


def test_another_sampler_of_a_distilled_model_is_refused(distilled, tmp_path):
    for sampler in ("euler", "dpm++"):
        with pytest.raises(ValueError, match="a distilled model has its own sampler only"):
            distilled.use_sampler(sampler)
    own, other = distilled.scheduler, create_sampler(distilled.scheduler, "euler")
    second_order = DPMSolverMultistepScheduler.from_config(own.config, solver_order=2)
    for scheduler in (other, second_order):
        distilled.scheduler = scheduler
        for use in (lambda: distilled([0]), lambda: distilled.save_pretrained(tmp_path)):
            with pytest.raises(ValueError, match="scheduler does not fit: this model was"):
                use()
    distilled.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
    distilled.save_pretrained(tmp_path)
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, scheduler=other)
    with pytest.raises(ValueError, match="scheduler does not fit"):
        loaded([0])


def test_a_guide_of_a_distilled_model_is_refused(distilled, tmp_path):
    guide = make_guide(distilled.vae)
    with pytest.raises(ValueError, match="guide_unet does not fit"):
        LatentDiffusionPipeline(**distilled.components | {"guide_unet": guide})
    distilled.guide_unet = guide
    for use in (lambda: distilled([0]), lambda: distilled.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="guide_unet does not fit"):
            use()


def test_own_guidance_of_a_distilled_model_is_refused(distilled):
    with pytest.raises(ValueError, match="guidance does not fit"):
        LatentDiffusionPipeline(**distilled.components, guidance=OWN)


def test_a_distilled_model_needs_its_number_of_steps(pipeline):
    with pytest.raises(ValueError, match="a distilled model needs num_inference_steps"):
        LatentDiffusionPipeline(**pipeline.components, distilled=True)
    LatentDiffusionPipeline(**pipeline.components)  # nothing of it stays with the denoiser


def test_a_student_may_be_a_copy_of_its_teacher(pipeline):
    teacher = LatentDiffusionPipeline(**pipeline.components, guidance=OWN, num_inference_steps=20)
    parts = {"vae": teacher.vae, "unet": copy.deepcopy(teacher.unet)}
    settings = {"num_inference_steps": 4, "distilled": True}
    student = LatentDiffusionPipeline(**parts, scheduler=create_scheduler("flow"), **settings)
    assert choose_sampling(student, True) == (4, Guidance())
    assert choose_sampling(teacher, True) == (20, Guidance(3.0, (0.3, 0.8)))


def test_image_to_image_of_a_distilled_model_starts_at_one_of_its_steps(distilled):
    calls, latents = count_calls(distilled.unet), torch.randn(1, 4, 4, 4)
    for strength, made in ((0.5, 2), (0.75, 3), (1.0, 4)):
        distilled([0], image_latents=latents, strength=strength, output_type="latent")
        assert calls == [1] * made
        calls.clear()
