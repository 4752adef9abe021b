"""The weights do what a stock pipeline cannot do, or the export is refused."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LDMPipeline,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from hf_latent.errors import UserError
from hf_latent.hub.stock_pipeline import (
    NULL_LABEL,
    OTHER_FLOWS,
    convert_flow_scheduler,
    to_stock_pipeline,
)
from hf_latent.models.fold import LatentStatistics, fold_latent_scale
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import create_sampler, set_inference_steps
from tests.conftest import make_autoencoder, make_denoiser

TOLERANCE = 1e-4  # in [0, 1]
CUT_TOLERANCE = 0.01  # of these models, if timesteps are truncated to whole numbers
SHIFTED = UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0
)
WHOLE = [n for n in range(1, 1001) if 1000 % n == 0]


@pytest.fixture(autouse=True)
def euler(pipeline, unconditional) -> None:
    """Sample flows with Euler's method, whose timesteps a stock pipeline need not truncate."""
    for model in (pipeline, unconditional):
        model.use_sampler("euler")


def draw(
    pipeline: LatentDiffusionPipeline, label: int | None = None, steps: int = 20, scale: float = 1
) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline(
        class_labels=label,
        num_images=2,
        guidance_scale=scale,
        guidance_interval=None if scale == 1 else (0, 1),
        num_inference_steps=steps,
        generator=generator,
        output_type="np",
    ).images


def draw_exported(
    pipeline: DiTPipeline | LDMPipeline, label: int | None = None, steps: int = 20, scale: float = 1
) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": steps}
    if isinstance(pipeline, LDMPipeline):
        assert label is None
        return pipeline(2, output_type="numpy", **settings).images
    labels = [NULL_LABEL if label is None else label] * 2
    return pipeline(labels, guidance_scale=scale, output_type="np", **settings).images


def assert_equal(pipeline, label=None, steps=20, tolerance=TOLERANCE, scale=1.0) -> None:
    exported = draw_exported(to_stock_pipeline(pipeline), label, steps, scale)
    own = draw(pipeline, label, steps, scale)
    np.testing.assert_allclose(exported, own, rtol=0, atol=tolerance)


@pytest.mark.parametrize("steps", [1, 8, 50])
def test_a_flow_is_equal_if_the_steps_divide_1000(pipeline, steps):
    assert_equal(pipeline, 1, steps)


def test_the_output_of_a_flow_is_scaled_with_its_bias(unconditional):
    with torch.no_grad():
        unconditional.unet.conv_out.bias.copy_(torch.tensor([-2.0, 2.0, 3.0, -3.0]))
    assert_equal(unconditional)


@pytest.mark.parametrize("label", [0, 2, None])
def test_each_class_and_the_null_label_draw_their_own_images(pipeline, label):
    exported = to_stock_pipeline(pipeline)
    own = draw(pipeline, label, 2)
    for other in (0, 2, None):
        difference = abs(draw_exported(exported, other, 2) - own).max()
        assert difference < TOLERANCE if other == label else difference > 100 * TOLERANCE


def test_guidance_is_that_of_the_model(pipeline):
    with torch.no_grad():
        pipeline.unet.class_embedding.weight *= 20
    assert abs(draw(pipeline, 1, scale=3) - draw(pipeline, 1)).max() > 100 * TOLERANCE
    assert_equal(pipeline, 1, scale=3)


def test_a_label_that_is_no_class_draws_none(pipeline):
    exported = to_stock_pipeline(pipeline)
    for label in (3, 999):
        np.testing.assert_array_equal(draw_exported(exported, label), draw_exported(exported))


def test_the_classes_have_their_names(pipeline, tmp_path):
    to_stock_pipeline(pipeline).save_pretrained(tmp_path)
    loaded = DiTPipeline.from_pretrained(tmp_path)
    assert loaded.get_label_ids(["owl", "cat"]) == [2, 0]
    pipeline.register_to_config(id2label={0: "cat", 1: "dog, hound", 2: "owl"})
    assert to_stock_pipeline(pipeline).get_label_ids(["hound", "dog"]) == [1, 1]
    pipeline.register_to_config(id2label=None)
    assert to_stock_pipeline(pipeline).labels == {}


def test_classes_that_the_stock_pipeline_cannot_have_are_refused(pipeline, vae):
    for names in (["cat", "dog, cat", "owl"], ["cat", "dog", "cat "]):
        pipeline.register_to_config(id2label=dict(enumerate(names)))
        with pytest.raises(UserError, match="two classes of the name 'cat': save the model with"):
            to_stock_pipeline(pipeline)
    many = LatentDiffusionPipeline(vae, make_denoiser(vae, 1001), pipeline.scheduler)
    with pytest.raises(UserError, match="has 1,001 classes, and DiTPipeline at most 1,000"):
        to_stock_pipeline(many)
    most = LatentDiffusionPipeline(vae, make_denoiser(vae, 1000), pipeline.scheduler)
    np.testing.assert_allclose(
        draw_exported(to_stock_pipeline(most), 999, 2), draw(most, 999, 2), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("steps", [7, 30])
def test_a_flow_is_near_at_other_numbers_of_steps(pipeline, steps):
    assert_equal(pipeline, 1, steps, CUT_TOLERANCE)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shifted_flow_is_near(pipeline, shift):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    assert_equal(pipeline, 1, 20, CUT_TOLERANCE)


@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("num_train_timesteps", [500, 1000])
def test_the_converted_scheduler_takes_the_steps_of_the_flow(shift, num_train_timesteps):
    own = FlowMatchEulerDiscreteScheduler(num_train_timesteps, shift=shift)
    converted, factor = convert_flow_scheduler(own)
    for steps in (1, 7, 20, 333):
        set_inference_steps(own, steps, "cpu")
        converted.set_timesteps(steps)
        torch.testing.assert_close(converted.sigmas * factor, own.sigmas, rtol=0, atol=1e-6)
        assert (converted.timesteps - own.timesteps).abs().max() <= 1


@pytest.mark.parametrize("steps", WHOLE)
def test_whole_timesteps_are_not_cut(steps):
    """Floating point turns 950 into 949.9999999, which would be truncated to 949."""
    own = FlowMatchEulerDiscreteScheduler()
    converted, _ = convert_flow_scheduler(own)
    set_inference_steps(own, steps, "cpu")
    converted.set_timesteps(steps)
    torch.testing.assert_close(converted.timesteps.float(), own.timesteps, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", OTHER_FLOWS)
def test_other_flows_are_refused(pipeline, name):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline.scheduler.register_to_config(**{name: 0.1})
    with pytest.raises(UserError, match=f"scheduler uses {name}, which stock"):
        to_stock_pipeline(pipeline)


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_a_sampler_of_several_orders_is_kept(pipeline, unconditional, sampler):
    for model, label in ((pipeline, 1), (unconditional, None)):
        model.use_sampler(sampler)
        made = LatentDiffusionPipeline(**model.components)
        exported = to_stock_pipeline(made)
        assert dict(exported.scheduler.config) == dict(made.scheduler.config)
        assert_equal(made, label, 8, CUT_TOLERANCE)
    with torch.no_grad():
        pipeline.unet.class_embedding.weight *= 20
    assert abs(draw(pipeline, 1, 8, 3) - draw(pipeline, 1, 8)).max() > 10 * CUT_TOLERANCE
    assert_equal(pipeline, 1, 8, 3 * CUT_TOLERANCE, scale=3)


def test_heun_of_a_flow_becomes_euler(unconditional):
    unconditional.use_sampler("heun")
    made = LatentDiffusionPipeline(**unconditional.components)
    exported = draw_exported(to_stock_pipeline(made), steps=4)
    assert abs(exported - draw(made, steps=4)).max() > 10 * TOLERANCE
    made.use_sampler("euler")
    np.testing.assert_allclose(exported, draw(made, steps=4), rtol=0, atol=TOLERANCE)


def test_the_shift_of_another_sampler_is_kept(unconditional):
    unconditional.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own, _ = convert_flow_scheduler(unconditional.scheduler)
    for sampler in ("heun", "dpm++", "unipc"):
        other = create_sampler(unconditional.scheduler, sampler)
        assert convert_flow_scheduler(other)[0].config == own.config, sampler


def test_a_distilled_flow_keeps_its_scheduler(distilled):
    exported = to_stock_pipeline(distilled)
    assert dict(exported.scheduler.config) == dict(distilled.scheduler.config)
    new = exported.transformer.conv_out.state_dict()
    for name, weight in distilled.unet.conv_out.state_dict().items():
        assert torch.equal(weight, new[name])
    assert_equal(distilled, 1, 4, CUT_TOLERANCE)


def test_a_distilled_flow_of_equal_steps_is_equal(pipeline):
    components = {"vae": pipeline.vae, "unet": pipeline.unet, "scheduler": pipeline.scheduler}
    settings = {"num_inference_steps": 4, "distilled": True}
    assert_equal(LatentDiffusionPipeline(**components, **settings), 1, 4)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (EulerDiscreteScheduler(), {}),
        (FlowMatchHeunDiscreteScheduler(), {"num_inference_steps": 4, "distilled": True}),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}),  # no seed would count
    ],
)
def test_other_schedulers_are_refused(pipeline, scheduler, settings):
    made = LatentDiffusionPipeline(pipeline.vae, pipeline.unet, scheduler, **settings)
    with pytest.raises(
        UserError, match=f"scheduler is {type(scheduler).__name__}.*, which DiTPipe"
    ):
        to_stock_pipeline(made)


@pytest.mark.parametrize(
    ("scheduler", "steps", "says"),
    [
        (UniPCMultistepScheduler(predict_x0=False, solver_type="bh1"), 10, "leaves nan% of"),
        (SHIFTED, 100, "two steps begin at the same whole timestep"),
    ],
)
def test_steps_that_the_stock_pipeline_cannot_make_are_refused(pipeline, scheduler, steps, says):
    parts = pipeline.vae, pipeline.unet, scheduler
    made = LatentDiffusionPipeline(*parts, num_inference_steps=steps)
    with pytest.raises(UserError, match=f"cannot make {steps} steps in a stock .*{says}"):
        to_stock_pipeline(made)


def test_the_schedule_of_a_diffusion_is_kept(pipeline):
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    pipeline = LatentDiffusionPipeline(pipeline.vae, pipeline.unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    exported = to_stock_pipeline(pipeline)
    assert dict(exported.scheduler.config) == dict(pipeline.scheduler.config)
    assert_equal(pipeline, 2)


@pytest.mark.parametrize("fixture", ["pipeline", "unconditional"])
def test_the_model_is_not_changed(request, fixture):
    pipeline = request.getfixturevalue(fixture)
    pipeline.vae.register_to_config(shift_factor=0.5)
    models = (pipeline.unet, pipeline.vae)
    weights = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    configs = [dict(model.config) for model in models]
    to_stock_pipeline(pipeline)
    assert [dict(model.config) for model in models] == configs
    for model, before in zip(models, weights, strict=True):
        assert model.state_dict().keys() == before.keys()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, before[name]), name


def test_oblong_images_are_refused(vae):
    denoiser = make_denoiser(vae, None)
    denoiser.register_to_config(sample_size=[4, 8])
    pipeline = LatentDiffusionPipeline(vae, denoiser, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="latents are 4x8, and LDMPipeline draws squares only"):
        to_stock_pipeline(pipeline)
    denoiser.register_to_config(sample_size=[4, 4])
    assert_equal(pipeline)


def make_skip_denoiser() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
    ).eval()


def test_a_flow_whose_output_cannot_be_scaled_is_refused(vae):
    pipeline = LatentDiffusionPipeline(vae, make_skip_denoiser(), FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="the denoiser has a SkipUpBlock2D"):
        to_stock_pipeline(pipeline)


FOREIGN_SCALES = {
    "scaling_factor": {"scaling_factor": 0.4},
    "no scaling_factor": {"scaling_factor": None, "shift_factor": 0.3},
    "shift_factor": {"scaling_factor": 0.4, "shift_factor": 0.3},
    "latents_mean": {"latents_mean": [0.5, -0.5, 1.0, 0.0]},
    "latents_std": {"latents_std": [0.5, 2.0, 1.0, 3.0]},
    "all": {
        "scaling_factor": 0.4,
        "shift_factor": 0.3,
        "latents_mean": [0.5, -0.5, 1.0, 0.0],
        "latents_std": [0.5, 2.0, 1.0, 3.0],
    },
}


@pytest.mark.parametrize(
    ("scale", "quant_convs"), [*((scale, True) for scale in FOREIGN_SCALES), ("all", False)]
)
def test_a_foreign_autoencoders_scale_is_folded(scale, quant_convs):
    vae = make_autoencoder(3)
    if not quant_convs:
        config = {**vae.config, "use_quant_conv": False, "use_post_quant_conv": False}
        torch.manual_seed(0)
        vae = AutoencoderKL.from_config(config).eval()
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), FlowMatchEulerDiscreteScheduler())
    neutral = draw(pipeline, 1)
    vae.register_to_config(**FOREIGN_SCALES[scale])
    assert abs(draw(pipeline, 1) - neutral).max() > 100 * TOLERANCE
    assert_equal(pipeline, 1)
    exported = to_stock_pipeline(pipeline).vae.config
    assert [exported.get(x) for x in ("shift_factor", "latents_mean", "latents_std")] == [None] * 3


def test_a_folded_autoencoder_is_exported_unchanged(pipeline):
    statistics = LatentStatistics(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.full((4,), 2.0))
    pipeline.vae = fold_latent_scale(pipeline.vae, statistics)
    assert to_stock_pipeline(pipeline).vae is pipeline.vae
    assert_equal(pipeline, 1)


def make_tiny_autoencoder() -> AutoencoderTiny:
    torch.manual_seed(0)
    channels = {f"{part}_block_out_channels": (8, 8, 8) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1, 1) for part in ("encoder", "decoder")}
    return AutoencoderTiny(latent_channels=4, scaling_factor=0.4, **channels, **blocks).eval()


def test_an_autoencoder_tiny_is_exported(tmp_path):
    vae = make_tiny_autoencoder()
    denoiser = make_denoiser(make_autoencoder(3))
    pipeline = LatentDiffusionPipeline(vae, denoiser, FlowMatchEulerDiscreteScheduler())
    assert_equal(pipeline, 1)
    to_stock_pipeline(pipeline).save_pretrained(tmp_path)
    loaded = DiTPipeline.from_pretrained(tmp_path)
    np.testing.assert_allclose(draw_exported(loaded, 1), draw(pipeline, 1), rtol=0, atol=TOLERANCE)


def test_an_autoencoder_tiny_with_a_shift_is_refused():
    vae = make_tiny_autoencoder()
    vae.register_to_config(shift_factor=0.1)
    denoiser = make_denoiser(make_autoencoder(3))
    pipeline = LatentDiffusionPipeline(vae, denoiser, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(
        UserError, match="the autoencoder is an AutoencoderTiny with a shift_factor"
    ):
        to_stock_pipeline(pipeline)
