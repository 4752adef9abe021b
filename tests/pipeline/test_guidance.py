import pytest
import torch

from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.experiments.generate import GenerateConfig
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance, choose_sampling, denoise_latents
from hf_latent.pipeline.samplers import (
    compatible_samplers,
    create_sampler,
    guidance_by_step,
    noise_levels,
    set_inference_steps,
)
from hf_latent.training.denoiser_config import DenoiserConfig
from tests.conftest import draw_latents


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "unipc"])
def test_noise_levels_are_those_of_the_samplers_own_sigmas(objective, sampler):
    scheduler = create_sampler(create_scheduler(objective), sampler)
    set_inference_steps(scheduler, 10, "cpu")
    sigmas = scheduler.sigmas[: len(scheduler.timesteps)]
    levels = noise_levels(scheduler, scheduler.timesteps)
    torch.testing.assert_close(levels, (sigmas / (1 + sigmas)).double(), rtol=0, atol=1e-5)


def test_noise_levels_of_ddim_and_of_zero_terminal_snr():
    scheduler = create_scheduler("v_prediction", zero_terminal_snr=True)
    set_inference_steps(scheduler, 2, "cpu")
    assert scheduler.timesteps.tolist() == [999, 499]
    share = scheduler.alphas_cumprod[499].item()
    sigma = ((1 - share) / share) ** 0.5
    assert noise_levels(scheduler, scheduler.timesteps).tolist() == pytest.approx(
        [1, sigma / (1 + sigma)]
    )


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_noise_levels_of_flow_are_its_sigmas(sampler):
    scheduler = create_sampler(create_scheduler("flow"), sampler)
    set_inference_steps(scheduler, 5, "cpu")
    sigmas = scheduler.sigmas[: len(scheduler.timesteps)].tolist()
    assert noise_levels(scheduler, scheduler.timesteps).tolist() == pytest.approx(sigmas)


def test_guidance_is_limited_to_the_interval():
    scheduler = create_scheduler("flow")
    set_inference_steps(scheduler, 4, "cpu")  # at 1, 0.75, 0.5 and 0.25
    timesteps = scheduler.timesteps
    assert guidance_by_step(Guidance(3.0), scheduler, timesteps) == [3, 3, 3, 3]
    assert guidance_by_step(Guidance(3.0, (0.3, 0.8)), scheduler, timesteps) == [1, 3, 3, 1]
    assert guidance_by_step(Guidance(3.0, (0.5, 0.75)), scheduler, timesteps) == [1, 3, 3, 1]
    assert guidance_by_step(Guidance(3.0, (0.3, 0.8)), scheduler, timesteps[2:]) == [3, 1]


@pytest.mark.parametrize(
    ("objective", "guided"), [("flow", [8, 16, 7, 13]), ("epsilon", [5, 11, 5, 11])]
)
def test_an_interval_guides_as_many_levels_with_every_sampler(objective, guided):
    trained = create_scheduler(objective)
    for sampler in compatible_samplers(trained):
        scheduler, found = create_sampler(trained, sampler), []
        for interval in ((0, 0.8), (0.2, 0.8)):
            for steps in (10, 20):
                set_inference_steps(scheduler, steps, "cpu")
                timesteps = scheduler.timesteps.unique()  # Heun evaluates twice at most of them
                scales = guidance_by_step(Guidance(3.0, interval), scheduler, timesteps)
                found.append(scales.count(3))
        assert found == guided, sampler


@pytest.mark.parametrize("interval", [(-0.1, 0.5), (0.5, 1.1), (0.7, 0.3), (0.5, 0.5), (0.1,), 0.5])
def test_invalid_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="guidance_interval must be two noise levels from 0 to 1"):
        Guidance(2.0, interval)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_invalid_scales_are_refused_everywhere(pipeline, tmp_path, scale):
    noise, classes = torch.randn(1, 4, 4, 4), torch.tensor([0])
    pipeline.scheduler.set_timesteps(2)
    saved = {"model": str(tmp_path), "guidance_scale": scale}
    for use in (
        lambda: Guidance(scale),
        lambda: pipeline([0], guidance_scale=scale),
        lambda: pipeline.denoise_latents(noise, class_labels=[0], guidance_scale=scale),
        lambda: denoise_latents(
            *(pipeline.unet, pipeline.scheduler, noise, pipeline.scheduler.timesteps),
            *({"class_labels": classes}, scale, {"class_labels": classes + 3}),
        ),
        lambda: LatentDiffusionPipeline(**pipeline.components, guidance={"guidance_scale": scale}),
        lambda: GenerateConfig(**saved),
        lambda: EvaluateConfig(**saved, output_dir="out"),
        lambda: DenoiserConfig(guidance_scale=scale, vae="v", output_dir="out"),
    ):
        with pytest.raises(ValueError, match=r"guidance_scale must be (0 or above|a .*number)"):
            use()
    for use in (
        lambda: pipeline.register_to_config(guidance={"guidance_scale": scale}),
        lambda: pipeline.save_pretrained(tmp_path),
    ):
        with pytest.raises(ValueError, match="guidance_scale must be 0 or above and finite"):
            use()


def test_the_pipeline_has_a_second_branch_only_inside_the_interval(pipeline):
    sizes = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    arguments = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}
    inside = pipeline([0, 1], guidance_scale=3, guidance_interval=(0.3, 0.8), **arguments).images
    assert sizes == [2, 4, 4, 2]
    everywhere = pipeline([0, 1], guidance_scale=3, **arguments).images
    nowhere = pipeline([0, 1], guidance_scale=1, **arguments).images
    whole = pipeline([0, 1], guidance_scale=3, guidance_interval=(0, 1), **arguments).images
    assert torch.equal(whole, everywhere)
    assert not torch.equal(inside, everywhere)
    assert not torch.equal(inside, nowhere)
    outside = pipeline([0, 1], guidance_scale=3, guidance_interval=(0.3, 0.4), **arguments).images
    assert torch.equal(outside, nowhere)


def test_an_interval_needs_labels(pipeline):
    with pytest.raises(ValueError, match="guidance_interval needs class_labels"):
        pipeline(guidance_interval=(0.2, 0.8))


BOTH = {"guidance_scale": 1.5, "guidance_interval": [0, 0.8]}


@pytest.mark.parametrize(
    ("guidable", "given", "own", "expected"),
    [
        (True, (None, None), {}, (2.0, None)),
        (True, (None, None), None, (2.0, None)),
        (True, (None, None), {"guidance_scale": 1.5}, (1.5, None)),
        (True, (None, None), {"guidance_interval": [0, 0.8]}, (2.0, (0, 0.8))),
        (True, (3.0, None), BOTH, (3.0, (0, 0.8))),
        (True, (None, (0, 1)), BOTH, (1.5, (0, 1))),
        (True, (0.0, None), {"guidance_scale": 1.5}, (0.0, None)),
        (True, (1.0, None), BOTH, (1.0, None)),
        (True, (1.0, (0, 0.8)), None, (1.0, None)),
        (False, (None, None), BOTH, (1.0, None)),
    ],
)
def test_unset_guidance_is_the_models_own(pipeline, guidable, given, own, expected):
    pipeline.register_to_config(guidance=own)
    assert choose_sampling(pipeline, guidable, None, *given) == (20, Guidance(*expected))


OWN = {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.8)}


@pytest.mark.parametrize("how", ["made", "saved", "from_pipe", "registered"])
def test_a_loaded_model_uses_its_saved_guidance_by_default(pipeline, tmp_path, how):
    plain, inside = draw_latents(pipeline, [0, 1]), draw_latents(pipeline, [0, 1], **OWN)
    everywhere = draw_latents(pipeline, [0, 1], guidance_scale=3)
    without = draw_latents(pipeline, [0, 1], guidance_scale=1)
    assert len({x.numpy().tobytes() for x in (plain, inside, everywhere, without)}) == 4
    own = LatentDiffusionPipeline(**pipeline.components, guidance=OWN)
    if how == "registered":
        pipeline.register_to_config(guidance=OWN)
        own = pipeline
    if how in ("saved", "registered"):
        own.save_pretrained(tmp_path)
        own = LatentDiffusionPipeline.from_pretrained(tmp_path)
    if how == "from_pipe":
        own = LatentDiffusionPipeline.from_pipe(own)
    assert torch.equal(draw_latents(own, [0, 1]), inside)
    assert torch.equal(draw_latents(own, [0, 1], guidance_interval=(0, 1)), everywhere)
    assert torch.equal(draw_latents(own, [0, 1], guidance_scale=1), without)
    everywhere_2 = draw_latents(own, [0, 1], guidance_scale=2, guidance_interval=(0, 1))
    assert torch.equal(everywhere_2, plain)
    assert torch.equal(draw_latents(own), draw_latents(pipeline))  # no labels, nothing to guide by


def test_models_without_guidance_and_without_classes(pipeline, unconditional):
    assert pipeline.config.guidance is None
    own = LatentDiffusionPipeline(**unconditional.components, guidance=OWN)
    assert torch.equal(draw_latents(own), draw_latents(unconditional))


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ({"guidance_interval": (0.8, 0.2)}, r"guidance_interval must be .*, not \(0\.8, 0\.2\)"),
        ({"guidance_scale": -1.0}, r"guidance_scale must be 0 or above and finite, not -1\.0"),
        ({"scale": 1.5}, "guidance has no scale"),
    ],
)
def test_a_pipeline_with_invalid_guidance_is_refused(pipeline, tmp_path, guidance, message):
    with pytest.raises(ValueError, match=message):
        LatentDiffusionPipeline(**pipeline.components, guidance=guidance)
    assert LatentDiffusionPipeline(**pipeline.components).config.guidance is None
    for use in (
        lambda: pipeline.register_to_config(guidance=guidance),
        lambda: pipeline.save_pretrained(tmp_path / "model"),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert not (tmp_path / "model").exists()
