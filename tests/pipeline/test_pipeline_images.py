"""Image to image, inpainting and interpolation."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler
from PIL import Image

from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.image_to_image import slerp
from tests.conftest import make_denoiser
from tests.ideal_denoiser import PAIRS, IdealDenoiser, scheduler_of

STEPS = {"num_inference_steps": 5, "output_type": "latent"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def noise():
    return torch.randn(2, 4, 4, 4, generator=seeded(3))


def test_image_to_image_makes_the_last_steps(pipeline, images, noise):
    pipeline.use_sampler("euler")
    found = pipeline([0, 1], image=images[:2], strength=0.6, latents=noise, **STEPS).images
    latents = pipeline.encode_images(images[:2], sample_posterior=False)
    # Of 5 equal steps the last 3: sigma from 0.6 on, with guidance 2.
    latents = 0.4 * latents + 0.6 * noise
    labels, null = torch.tensor([0, 1]), torch.tensor([3, 3])
    with torch.no_grad():
        for sigma in (0.6, 0.4, 0.2):
            t = torch.tensor(sigma * 1000)
            conditional = pipeline.unet(latents, t, class_labels=labels).sample
            unconditional = pipeline.unet(latents, t, class_labels=null).sample
            velocity = unconditional + 2 * (conditional - unconditional)
            latents = latents - 0.2 * velocity
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("sampler", "index"), [("euler", 2), ("heun", 4), ("dpm++", 2)])
def test_samplers_get_the_index_of_their_first_step(pipeline, images, sampler, index):
    # Without an index, diffusers picks the second of two timesteps rounded to the same number.
    pipeline.use_sampler(sampler)
    pipeline([0], image=images[:1], strength=0.6, **STEPS)
    assert pipeline.scheduler.begin_index == index
    pipeline([0], **STEPS)
    assert pipeline.scheduler.begin_index == 0


def test_strength_1_starts_from_noise_only(pipeline, images, noise):
    plain = pipeline([0, 1], latents=noise, **STEPS).images
    whole = pipeline([0, 1], image=images[:2], strength=1.0, latents=noise, **STEPS).images
    assert torch.equal(plain, whole)


def test_strength_0_is_a_reconstruction(pipeline, images):
    found = pipeline([0, 1], image=images[:2], strength=0, output_type="pt").images
    assert torch.equal(found, pipeline.reconstruct(images[:2]))


def test_the_default_strength_is_four_fifths(pipeline, images, noise):
    default = pipeline([0, 1], image=images[:2], latents=noise, **STEPS).images
    explicit = pipeline([0, 1], image=images[:2], strength=0.8, latents=noise, **STEPS).images
    assert torch.equal(default, explicit)


def test_one_image_is_used_for_all(pipeline, images, noise):
    found = pipeline([0, 1], image=images[:1], strength=0.6, latents=noise, **STEPS).images
    repeated = images[:1].expand(2, -1, -1, -1)
    expected = pipeline([0, 1], image=repeated, strength=0.6, latents=noise, **STEPS).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    three = pipeline(0, num_images=3, image=images[:1], **STEPS).images
    assert three.shape == (3, 4, 4, 4)
    assert not torch.equal(three[0], three[1])


def test_the_number_of_given_images_is_the_default_number(unconditional, images):
    assert len(unconditional(image=images[:3], **STEPS).images) == 3


def test_pil_images_tensors_and_latents_are_equivalent(pipeline, images, noise):
    pictures = [
        Image.fromarray(((image[0] / 2 + 0.5) * 255).round().byte().numpy()) for image in images[:2]
    ]
    of_pictures = pipeline([0, 1], image=pictures, latents=noise, **STEPS).images
    of_tensors = pipeline([0, 1], image=images[:2], latents=noise, **STEPS).images
    torch.testing.assert_close(of_pictures, of_tensors, rtol=0, atol=0.05)
    encoded = pipeline.encode_images(images[:2], sample_posterior=False)
    of_latents = pipeline([0, 1], image_latents=encoded, latents=noise, **STEPS).images
    assert torch.equal(of_latents, of_tensors)


def test_an_image_of_another_size_than_trained_on(pipeline):
    found = pipeline([0], image=torch.zeros(1, 1, 32, 16), strength=0.5, output_type="pt").images
    assert found.shape == (1, 1, 32, 16)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "unipc"])
@pytest.mark.parametrize("strength", [None, 0.6, 0])
def test_inpainting_keeps_the_rest(pipeline, images, noise, sampler, strength):
    pipeline.use_sampler(sampler)
    mask = torch.zeros(16, 16)
    mask[4:8, 5:16] = 1  # the second row of latents, but for its first place
    arguments = {"mask_image": mask, "strength": strength, "latents": noise}
    found = pipeline([0, 1], image=images[:2], **arguments, **STEPS).images
    kept = pipeline.encode_images(images[:2], sample_posterior=False)
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[1, 1:] = True
    assert torch.equal(found[:, :, ~free], kept[:, :, ~free])
    changed = (found - kept)[:, :, free].abs().amax((1, 2)) > 1e-3
    assert changed.all() if strength != 0 else not changed.any()
    assert found.isfinite().all()


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
@pytest.mark.parametrize("given", ["tensor", "pil", "one for all"])
def test_inpainting_keeps_the_pixels(pipeline, images, noise, output_type, given):
    """This decoder never saw an image, so its pixels are far from the originals."""
    pixels = ((images[:2] + 1) * 127.5).round()
    image = pixels / 127.5 - 1
    if given != "tensor":
        image = [Image.fromarray(x[0].byte().numpy()) for x in pixels]
    if given == "one for all":
        image, pixels = image[0], pixels[:1].expand(2, -1, -1, -1)
    mask = torch.zeros(16, 16)
    mask[:, 10:] = 1
    options = {"num_inference_steps": 2, "output_type": output_type, "latents": noise}
    found = pipeline([0, 1], image=image, mask_image=mask, **options).images
    latents = pipeline([0, 1], image=image, mask_image=mask, **options | {"output_type": "latent"})
    decoded = (pipeline.decode_latents(latents.images) / 2 + 0.5).clamp(0, 1)
    if output_type == "pil":
        found = np.stack([np.asarray(x) for x in found])[:, None] / 255
    elif output_type == "np":
        found = found.transpose(0, 3, 1, 2)
    found = torch.as_tensor(found)
    torch.testing.assert_close(  # the band is of 4 pixels
        found[..., :6], pixels[..., :6].to(found) / 255, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        found[..., 10:], decoded[..., 10:].to(found), rtol=0, atol=0.51 / 255
    )
    assert (decoded - pixels / 255)[..., :6].abs().mean() > 0.1


def test_inpainting_of_latents_has_no_pixels_to_keep(pipeline, images, noise):
    latents = pipeline.encode_images(images[:2], sample_posterior=False)
    options = {"num_inference_steps": 2, "latents": noise, "mask_image": torch.zeros(16, 16)}
    found = pipeline([0, 1], image_latents=latents, output_type="pt", **options).images
    assert torch.equal(found, pipeline.reconstruct(images[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x + 1) * 127.5, "values from .* to 25., and must be in"),
        (lambda x: x / 2 + 0.5, "values from 0.0.* to 0.99.* pass x . 2 - 1 for x in .0, 1."),
        (lambda x: x * 1.1, r"values from -1\.\d+ to 1\.\d+"),
        (lambda x: x * float("nan"), "values from nan to nan"),
        (lambda x: ((x + 1) * 127.5).byte(), "float tensor .* torch.uint8"),
        (lambda x: (x / 2 + 0.5).permute(0, 2, 3, 1).numpy(), "must be PIL images, or a tensor"),
    ],
)
def test_images_in_another_range_are_refused(pipeline, images, change, message):
    """Also what `output_type` "pt" and "np" give, which is in [0, 1]."""
    for use in (
        lambda x: pipeline([0], image=x),
        pipeline.encode_images,
        pipeline.reconstruct,
        lambda x: pipeline.interpolate(x[:1], x[1:2]),
    ):
        with pytest.raises(ValueError, match=message):
            use(change(images))


def test_what_the_pipeline_draws_can_be_given_to_it_again(pipeline, noise):
    options = {"latents": noise, "num_inference_steps": 2}
    drawn = pipeline([0, 1], output_type="pt", **options).images
    with pytest.raises(ValueError, match=r"pass x \* 2 - 1 for x in \[0, 1\]"):
        pipeline([0, 1], image=drawn)
    pictures = pipeline([0, 1], **options).images
    of_tensors, of_pictures = (
        pipeline([0, 1], image=x, strength=0, output_type="pt").images
        for x in (drawn * 2 - 1, pictures)
    )
    torch.testing.assert_close(of_tensors, of_pictures, rtol=0, atol=0.05)


def test_a_full_mask_generates_and_an_empty_mask_keeps_the_image(pipeline, images, noise):
    arguments = {"image": images[:2], "latents": noise}
    white, black = (Image.new("L", (16, 16), value) for value in (255, 0))
    everything = pipeline([0, 1], mask_image=white, **arguments, **STEPS).images
    assert torch.equal(everything, pipeline([0, 1], latents=noise, **STEPS).images)
    nothing = pipeline([0, 1], mask_image=black, **arguments, **STEPS).images
    assert torch.equal(nothing, pipeline.encode_images(images[:2], sample_posterior=False))


def test_masks_one_an_image(pipeline, images, noise):
    masks = torch.zeros(2, 1, 16, 16)
    masks[1] = 1
    found = pipeline([0, 1], image=images[:2], mask_image=masks, latents=noise, **STEPS).images
    kept = pipeline.encode_images(images[:2], sample_posterior=False)
    assert torch.equal(found[0], kept[0])
    assert not torch.isclose(found[1], kept[1]).all()


def test_several_masks_on_one_image(pipeline, images):
    masks = torch.zeros(2, 1, 16, 16)
    masks[1] = 1
    found = pipeline(0, image=images[:1], mask_image=masks, **STEPS).images
    kept = pipeline.encode_images(images[:1], sample_posterior=False)
    assert len(found) == 2
    assert torch.equal(found[:1], kept)
    assert not torch.isclose(found[1:], kept).all()


@pytest.mark.parametrize("arguments", [{"strength": 0.5}, {"strength": 0.5, "mask": True}, {}])
@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_an_ideal_denoiser_is_reached_from_an_image(vae, name, sampler, arguments):
    """Inside the mask are the latents that the denoiser knows, outside those of the image."""
    scheduler = scheduler_of(name)
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae, None), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    known, image, noise = torch.randn(3, 2, 4, 4, 4, generator=seeded())
    pipeline.unet.forward = IdealDenoiser(known, scheduler).forward
    pipeline.use_sampler(sampler)
    mask, free = None, torch.ones(4, 4, dtype=torch.bool)
    if arguments.pop("mask", False):
        mask = torch.zeros(16, 16)
        mask[:8] = 1
        free[2:] = False
    found = pipeline(
        image_latents=image,
        mask_image=mask,
        latents=noise,
        num_inference_steps=10,
        output_type="latent",
        generator=[seeded(1), seeded(2)],
        **arguments,
    ).images
    torch.testing.assert_close(found[:, :, free], known[:, :, free], rtol=0, atol=4e-3)
    assert torch.equal(found[:, :, ~free], image[:, :, ~free])


def test_a_sampler_that_cannot_start_from_an_image_is_refused(vae, images):
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), PNDMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0], num_inference_steps=10).images
    with pytest.raises(ValueError, match="PNDMScheduler can start from noise only"):
        pipeline([0], image=images[:1])


def test_the_noise_of_a_stochastic_sampler_follows_the_generator(vae, images):
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), DDPMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    for ends in ((1, 2), (images[:1], images[1:2])):
        first, again, other = (
            pipeline.interpolate(
                *ends, num_images=2, class_labels=0, generator=seeded(seed), **STEPS
            ).images
            for seed in (5, 5, 6)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_interpolation_between_seeds(pipeline):
    found = pipeline.interpolate(7, 8, num_images=3, class_labels=1, **STEPS).images
    ends = [torch.randn(1, 4, 4, 4, generator=seeded(seed)) for seed in (7, 8)]
    latents = torch.cat([slerp(*ends, weight) for weight in (0, 0.5, 1)])
    expected = pipeline([1, 1, 1], latents=latents, **STEPS).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_interpolation_between_images(pipeline, images):
    arguments = {"num_images": 3, "class_labels": 1}
    plain = pipeline.interpolate(images[:1], images[1:2], strength=0, output_type="pt", **arguments)
    ends = pipeline.encode_images(images[:2], sample_posterior=False).split(1)
    decoded = pipeline.decode_latents(slerp(*ends, 0.5))
    expected = pipeline.image_processor.postprocess(decoded, "pt")
    torch.testing.assert_close(plain.images[1:2], expected, rtol=0, atol=1e-5)
    ends_of_it = plain.images[[0, 2]]
    torch.testing.assert_close(ends_of_it, pipeline.reconstruct(images[:2]), rtol=0, atol=1e-5)
    # One draw of noise is used for all images.
    found = pipeline.interpolate(images[:1], images[1:2], generator=seeded(5), **arguments, **STEPS)
    noise = torch.randn(1, 4, 4, 4, generator=seeded(5)).expand(2, -1, -1, -1)
    expected = pipeline([1, 1], image=images[:2], strength=0.5, latents=noise, **STEPS).images
    torch.testing.assert_close(found.images[[0, 2]], expected, rtol=0, atol=1e-5)


def test_interpolated_pictures(pipeline):
    pictures = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (0, 255)]
    found = pipeline.interpolate(*pictures, num_images=2, num_inference_steps=2).images
    assert [picture.size for picture in found] == [(16, 16)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength and mask_image need an image"),
        ({"mask_image": torch.zeros(16, 16)}, "strength and mask_image need an image"),
        ({"image": torch.zeros(1, 1, 16, 16), "strength": 1.5}, "strength must be from 0 to 1"),
        (
            {"image": torch.zeros(1, 1, 16, 16), "mask_image": torch.zeros(8, 8)},
            "a mask of 8x8 does not fit an image of 16x16",
        ),
        (
            {
                "image": torch.zeros(1, 1, 16, 16),
                "mask_image": torch.zeros(3, 1, 16, 16),
                "num_images": 2,
            },
            "3 masks were given for 2 images",
        ),
        ({"image": torch.zeros(3, 1, 16, 16), "num_images": 2}, "3 images were given for 2 images"),
        (
            {"image": torch.zeros(1, 1, 16, 16), "image_latents": torch.zeros(1, 4, 4, 4)},
            "pass either image or image_latents",
        ),
        ({"image_latents": torch.zeros(4, 4, 4)}, r"shape \(B, c, h, w\)"),
        ({"image_latents": torch.zeros(1, 3, 4, 4)}, "3 channels"),
        (
            {"image": torch.zeros(1, 1, 32, 32), "latents": torch.zeros(1, 4, 4, 4)},
            r"image_latents have the shape \(1, 4, 8, 8\) and latents \(1, 4, 4, 4\)",
        ),
        ({"image": np.zeros((16, 16))}, "images must be PIL images, or a tensor"),
        (
            {"image": torch.zeros(1, 1, 16, 16), "mask_image": np.zeros((16, 16))},
            "a mask must be a PIL image",
        ),
        ({"mask_image": np.zeros((16, 16))}, "need an image"),
        ({"image": torch.zeros(1, 3, 16, 16)}, "channel"),
        ({"image": torch.zeros(1, 1, 18, 16)}, "multiple"),
    ],
)
def test_images_that_do_not_fit_are_refused(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


@pytest.mark.parametrize(
    ("ends", "arguments", "message"),
    [
        ((1, torch.zeros(1, 1, 16, 16)), {}, "between two seeds or two images"),
        ((1, 2), {"num_images": 1}, "between two seeds or two images"),
        ((1, 2), {"strength": 0.5}, "strength is for images"),
        ((1, 2), {"latents": torch.zeros(8, 4, 4, 4)}, "interpolate takes no latents"),
        ((torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 32, 16)), {}, "of the same size"),
        ((torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)), {}, "between one image and"),
    ],
)
def test_invalid_interpolations_are_refused(pipeline, ends, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.interpolate(*ends, **arguments)


def test_seeds_of_other_integer_types(pipeline):
    found = pipeline.interpolate(np.int64(7), np.int64(8), num_images=2, **STEPS).images
    assert torch.equal(found, pipeline.interpolate(7, 8, num_images=2, **STEPS).images)
