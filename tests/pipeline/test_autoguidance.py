"""Autoguidance: a weaker denoiser is evaluated beside the denoiser in every guided step."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import FrozenDict

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import denoise_latents, predict
from hf_latent.pipeline.samplers import set_inference_steps
from tests.conftest import count_calls, draw_latents, make_denoiser, make_guide
from tests.ideal_denoiser import IdealDenoiser


def changed(unet: UNet2DModel, **changes) -> UNet2DModel:
    config = {name: x for name, x in unet.config.items() if not name.startswith("_")}
    return UNet2DModel(**config | changes)


@pytest.mark.parametrize("num_classes", [3, None])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_autoguidance_formula(vae, num_classes, scale):
    unet, guide = make_denoiser(vae, num_classes), make_guide(vae, num_classes)
    labels = None if num_classes is None else torch.tensor([0, 2])
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in (torch.tensor(500.0), torch.tensor([500.0, 20.0])):
        with torch.no_grad():
            strong, weak = (x(latents, t, class_labels=labels).sample for x in (unet, guide))
            found = predict(unet, latents, t, {"class_labels": labels}, scale, guide_unet=guide)
        assert (strong - weak).abs().max() > 0.1
        torch.testing.assert_close(found, weak + scale * (strong - weak), rtol=0, atol=1e-6)


class Ideal(IdealDenoiser):
    """An ideal denoiser with the attributes that `check_guide` reads."""

    dtype = torch.float32

    def __init__(self, *args):
        super().__init__(*args)
        self.config = FrozenDict(vars(self.config))


@pytest.mark.parametrize("objective", ["flow", "epsilon", "v_prediction", "sample"])
def test_denoised_latents_follow_the_papers_equation_for_every_objective(objective):
    strong, weak, noise = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = create_scheduler(objective)
    set_inference_steps(scheduler, 4, "cpu")
    unet, guide_unet = Ideal(strong, scheduler), Ideal(weak, scheduler)
    found = denoise_latents(
        *(unet, scheduler, noise, scheduler.timesteps), guidance=1.5, guide_unet=guide_unet
    )
    torch.testing.assert_close(found, weak + 1.5 * (strong - weak), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [None, 1, 1.0])
def test_without_guidance_the_guide_is_not_called(guided, scale):
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    labels, t = torch.tensor([0, 2]), torch.tensor(500.0)
    calls = count_calls(guided.guide_unet)
    with torch.no_grad():
        alone = guided.unet(latents, t, class_labels=labels).sample
        assert torch.equal(
            predict(
                *(guided.unet, latents, t, {"class_labels": labels}, scale),
                guide_unet=guided.guide_unet,
            ),
            alone,
        )
    off = draw_latents(guided, [0, 2], guidance_scale=1)
    assert calls == []
    guided.guide_unet = None
    assert torch.equal(draw_latents(guided, [0, 2], guidance_scale=1), off)


@pytest.mark.parametrize("scale", [0.0, 2.0, 7.0])
def test_the_denoiser_as_its_own_guide_changes_nothing(guided, scale):
    guided.guide_unet = guided.unet
    plain = draw_latents(guided, [0, 2], guidance_scale=1)
    found = draw_latents(guided, [0, 2], guidance_scale=scale)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)


def test_a_guide_replaces_the_null_label(guided):
    calls, others = count_calls(guided.unet), count_calls(guided.guide_unet)
    autoguidance = draw_latents(guided, [0, 2], guidance_scale=2)
    assert (calls, others) == ([2, 2, 2], [2, 2, 2])
    guided.guide_unet = None
    classifier_free = draw_latents(guided, [0, 2], guidance_scale=2)
    assert (calls[3:], others[3:]) == ([4, 4, 4], [])
    assert not torch.allclose(autoguidance, classifier_free, atol=0.1)


@pytest.mark.parametrize("kind", ["guided", "unconditional_guided"])
def test_autoguidance_needs_no_labels_and_has_default_scale_2(kind, request):
    pipeline = request.getfixturevalue(kind)
    found = draw_latents(pipeline)
    assert torch.equal(found, draw_latents(pipeline, guidance_scale=2))
    assert not torch.equal(found, draw_latents(pipeline, guidance_scale=3))
    plain = draw_latents(pipeline, guidance_scale=1)
    assert not torch.equal(found, plain)
    pipeline.guide_unet = None
    assert torch.equal(draw_latents(pipeline), plain)
    for name, value in (("scale", 2), ("interval", (0.2, 0.8))):
        with pytest.raises(ValueError, match=f"guidance_{name} needs class_labels or a guide"):
            draw_latents(pipeline, **{f"guidance_{name}": value})


def test_an_unconditional_guided_step_equals_one_computed_by_hand(unconditional_guided):
    unconditional_guided.use_sampler("euler")
    found = draw_latents(unconditional_guided, steps=1, guidance_scale=3)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        strong, weak = (
            model(noise, torch.tensor(1000.0)).sample
            for model in (unconditional_guided.unet, unconditional_guided.guide_unet)
        )
    expected = noise - (weak + 3 * (strong - weak))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "labels"), [("guided", [0, 2]), ("unconditional_guided", None)])
def test_the_guide_is_called_only_inside_the_interval(request, kind, labels):
    pipeline = request.getfixturevalue(kind)
    seen, calls = [], count_calls(pipeline.unet)
    pipeline.guide_unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    arguments = {"steps": 4, "guidance_scale": 3}
    inside = draw_latents(pipeline, labels, guidance_interval=(0.3, 0.8), **arguments)
    assert [float(t) for t in seen] == pytest.approx([750.25, 500.5])
    assert calls == [2, 2, 2, 2]
    assert not torch.equal(inside, draw_latents(pipeline, labels, **arguments))
    whole = draw_latents(pipeline, labels, guidance_interval=(0, 1), **arguments)
    assert torch.equal(whole, draw_latents(pipeline, labels, **arguments))


MISMATCHES = {
    "in_channels": (lambda guide: changed(guide, in_channels=3), "has in_channels 3, and"),
    "out_channels": (lambda guide: changed(guide, out_channels=8), "has out_channels 8, and"),
    "sample_size": (
        lambda guide: changed(guide, sample_size=8),
        r"has sample_size \[8, 8\], and the denoiser \[4, 4\]",
    ),
    "other classes": (
        lambda guide: changed(guide, num_class_embeds=6),
        "has num_class_embeds 6, and the denoiser 4",
    ),
    "no classes": (
        lambda guide: changed(guide, num_class_embeds=None),
        "has num_class_embeds None, and the denoiser 4",
    ),
    "class embedding": (
        lambda guide: changed(guide, class_embed_type="timestep"),
        "has class_embed_type timestep, and the denoiser None",
    ),
    "dtype": (lambda guide: guide.half(), "has dtype torch.float16, and the denoiser"),
}


@pytest.mark.parametrize("change, message", MISMATCHES.values(), ids=MISMATCHES)
def test_a_guide_that_does_not_fit_is_refused_when_given_called_and_saved(
    guided, tmp_path, change, message
):
    wrong = change(guided.guide_unet)
    parts = guided.components | {"guide_unet": wrong}
    guided.guide_unet = wrong
    for refused in (
        lambda: LatentDiffusionPipeline(**parts),
        lambda: draw_latents(guided, [0, 1]),
        lambda: draw_latents(guided, [0, 1], guidance_scale=1),
        lambda: guided.save_pretrained(tmp_path / "model"),
    ):
        with pytest.raises(ValueError, match=f"^guide_unet {message}") as error:
            refused()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_guide_may_have_fewer_levels_but_not_more(vae):
    one = make_guide(vae, block_out_channels=(8,), attention=(False,))
    three = make_guide(vae, block_out_channels=(8, 8, 8), attention=(False, False, False))
    parts = {"vae": vae, "unet": make_denoiser(vae), "scheduler": create_scheduler("flow")}
    pipeline = LatentDiffusionPipeline(**parts, guide_unet=one)
    assert draw_latents(pipeline, [0, 1]).shape == (2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"multiples of 4, the denoiser 2: .* no more levels"):
        LatentDiffusionPipeline(**parts, guide_unet=three)


def test_sample_sizes_as_a_number_and_as_a_pair_are_equal(guided):
    expected = draw_latents(guided, [0, 2])
    guided.guide_unet.register_to_config(sample_size=(4, 4))
    assert torch.equal(draw_latents(guided, [0, 2]), expected)


def test_a_guide_that_lacks_weights_is_refused(guided):
    guided.guide_unet.conv_in.to("meta")
    with pytest.raises(ValueError, match=r"the guide_unet lacks weights: conv_in\.weight"):
        LatentDiffusionPipeline(**guided.components)


def test_components_and_from_pipe_carry_the_guide(guided, unconditional):
    again = LatentDiffusionPipeline(**guided.components, id2label=guided.config.id2label)
    other = LatentDiffusionPipeline.from_pipe(guided)
    assert again.guide_unet is other.guide_unet is guided.guide_unet
    assert torch.equal(draw_latents(other, ["owl", "cat"]), draw_latents(guided, ["owl", "cat"]))
    assert LatentDiffusionPipeline.from_pipe(unconditional).guide_unet is None
    assert guided.to(torch.float64).guide_unet.dtype == torch.float64


def test_offloading_keeps_the_guide_on_the_device_during_the_steps(guided):
    expected = draw_latents(guided, [0, 2])
    guided.enable_model_cpu_offload(device="cpu")  # with a CPU for the GPU
    hooks = {x.model: x.hook for x in guided._all_hooks}
    assert set(hooks) == {guided.vae, guided.unet, guided.guide_unet}
    # Neither of the two offloads the other when it is called.
    assert all(hooks[x].prev_module_hook is None for x in (guided.unet, guided.guide_unet))
    assert torch.equal(draw_latents(guided, [0, 2]), expected)
