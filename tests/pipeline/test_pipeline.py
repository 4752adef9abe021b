import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import make_autoencoder, make_denoiser


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("output_type", "kind"), [("pil", list), ("np", np.ndarray), ("pt", torch.Tensor)]
)
def test_output_types(pipeline, output_type, kind):
    arguments = {"num_inference_steps": 2, "output_type": output_type}
    images = pipeline([0, 1], generator=seeded(), **arguments).images
    assert isinstance(images, kind)
    assert len(images) == 2
    (again,) = pipeline([0, 1], generator=seeded(), return_dict=False, **arguments)
    assert all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, again, strict=True)
    )
    if output_type == "pil":
        assert images[0].size == (16, 16)
        assert images[0].mode == "L"
    else:
        assert images.shape == ((2, 16, 16, 1) if output_type == "np" else (2, 1, 16, 16))
        assert images.min() >= 0
        assert images.max() <= 1


def test_latents_out_and_in(pipeline):
    noise = torch.randn(2, 4, 4, 4)
    latents = pipeline([0, 1], latents=noise, num_inference_steps=2, output_type="latent").images
    assert latents.shape == (2, 4, 4, 4)
    images = pipeline([0, 1], latents=noise, num_inference_steps=2, output_type="pt").images
    decoded = pipeline.decode_latents(latents) / 2 + 0.5
    torch.testing.assert_close(images, decoded.clamp(0, 1), rtol=0, atol=0)


def test_labels_by_number_name_and_tensor_are_the_same(pipeline):
    outputs = [
        pipeline(labels, generator=seeded(), num_inference_steps=2, output_type="latent").images
        for labels in ([2, 0], ["owl", "cat"], torch.tensor([2, 0]))
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_labels_may_be_a_numpy_array(pipeline):
    assert pipeline.get_label_ids(np.array([0, 2])) == [0, 2]
    assert pipeline.get_label_ids(np.array(["owl", "cat"])) == [2, 0]


def test_images_of_different_sizes_or_modes_are_refused(pipeline):
    for other in (Image.new("L", (8, 16)), Image.new("RGB", (16, 16))):
        with pytest.raises(ValueError, match="different sizes or modes"):
            pipeline.encode_images([Image.new("L", (16, 16)), other])


def test_pil_output_of_two_channels_shows_the_second_as_green_and_blue():
    vae = make_autoencoder(channels=2)
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("flow"))
    images = torch.linspace(-1, 1, 2 * 256).view(1, 2, 16, 16)
    red, green, blue = np.moveaxis(np.asarray(pipeline.reconstruct(images, "pil")[0]), 2, 0)
    first, second = pipeline.reconstruct(images)[0].numpy()
    assert np.array_equal(red, (first * 255).round())
    assert np.array_equal(green, (second * 255).round()) and np.array_equal(green, blue)
    with pytest.raises(ValueError, match="output_type must be pil, np or pt, not 'latent'"):
        pipeline.reconstruct(torch.zeros(1, 2, 16, 16), "latent")
    assert pipeline([0], num_inference_steps=1, output_type="pt").images.shape == (1, 2, 16, 16)


def test_labels_are_used_in_turn(pipeline):
    arguments = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "latents": torch.randn(5, 4, 4, 4),
    }
    in_turn = pipeline([1, 2], num_images=5, **arguments).images
    spelled_out = pipeline([1, 2, 1, 2, 1], **arguments).images
    assert torch.equal(in_turn, spelled_out)


def test_an_image_does_not_depend_on_its_batch(pipeline):
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    batch = pipeline([0, 1, 2], generator=[seeded(i) for i in range(3)], **arguments).images
    for i in range(3):
        alone = pipeline([i], generator=[seeded(i)], **arguments).images
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=0, atol=1e-4)
        pixels, alone_pixels = ((x * 255).round() for x in (batch[i : i + 1], alone))
        assert (pixels - alone_pixels).abs().max() <= 1


def test_guidance_changes_the_image_and_scale_1_is_off(pipeline):
    noise = torch.randn(2, 4, 4, 4)

    def latents(guidance_scale):
        return pipeline(
            [0, 1],
            latents=noise,
            guidance_scale=guidance_scale,
            num_inference_steps=2,
            output_type="latent",
        ).images

    assert torch.equal(latents(None), latents(2.0))
    assert not torch.equal(latents(1.0), latents(2.0))


def test_unconditional(unconditional):
    images = unconditional(num_images=3, num_inference_steps=1).images
    assert len(images) == 3
    assert len(unconditional(num_inference_steps=1).images) == 1


def test_a_conditional_model_without_labels_uses_the_null_label(pipeline):
    pipeline.use_sampler("euler")
    noise = torch.randn(2, 4, 4, 4)
    latents = pipeline(latents=noise, num_inference_steps=1, output_type="latent").images
    null = torch.full((2,), 3)
    velocity = pipeline.unet(noise, torch.tensor(1000.0), class_labels=null).sample
    torch.testing.assert_close(latents, noise - velocity, rtol=0, atol=1e-5)


def test_the_callback_sees_every_step_and_can_replace_the_latents(pipeline):
    steps = []

    def callback(pipe, i, t, tensors):
        assert pipe is pipeline
        steps.append((i, float(t)))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 2 else {}

    latents = pipeline(
        [0], num_inference_steps=3, output_type="latent", callback_on_step_end=callback
    ).images
    assert steps == list(enumerate(pipeline.scheduler.timesteps.tolist()))
    assert torch.equal(latents, torch.zeros_like(latents))


def test_the_four_steps_are_methods(pipeline, images):
    latents = pipeline.encode_images(images, sample_posterior=False)
    noise = torch.randn_like(latents)
    noised = pipeline.add_noise(latents, noise, torch.full((4,), 1000.0))
    assert torch.equal(noised.noisy_latents, noise)
    denoised = pipeline.denoise_latents(noise, num_inference_steps=1, class_labels=[0, 1, 2, 0])
    assert denoised.shape == latents.shape
    assert pipeline.decode_latents(denoised).shape == images.shape


def test_reconstruct_tensors_and_pil_images(pipeline):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = torch.from_numpy(pixels).float().view(1, 1, 16, 16) / 127.5 - 1
    from_pil = pipeline.reconstruct(Image.fromarray(pixels), output_type="pt")
    from_tensor = pipeline.reconstruct(tensor, output_type="pt")
    torch.testing.assert_close(from_pil, from_tensor, rtol=0, atol=1e-5)
    assert isinstance(pipeline.reconstruct(tensor, output_type="pil")[0], Image.Image)


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "CMYK", "LA"])
def test_pil_images_of_other_modes_are_refused(pipeline, mode):
    with pytest.raises(ValueError, match="convert images of mode"):
        pipeline.encode_images(Image.new(mode, (16, 16)))


def test_pil_images_are_never_resized(pipeline):
    with pytest.raises(ValueError, match="22x18 do not fit"):
        pipeline.reconstruct(Image.new("L", (18, 22)))
    with pytest.raises(ValueError, match="3 channels"):
        pipeline.encode_images(Image.new("RGB", (16, 16)))


def test_pixels_that_are_not_float_are_refused(pipeline):
    with pytest.raises(ValueError, match="float tensor"):
        pipeline.encode_images(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))


def test_slicing_and_tiling_of_the_autoencoder_work(pipeline):
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    plain = pipeline.reconstruct(images)
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(pipeline.reconstruct(images), plain, rtol=0, atol=1e-4)
    pipeline.vae.enable_tiling()
    tiled = pipeline.reconstruct(images)
    assert tiled.shape == plain.shape
    assert not torch.equal(tiled, plain)


def test_model_offload_works(pipeline, images):
    from accelerate.hooks import CpuOffload, add_hook_to_module

    expected = pipeline.reconstruct(images)
    samples = pipeline([0], generator=seeded(), num_inference_steps=1, output_type="pt").images
    calls = []

    class CountingOffload(CpuOffload):
        """What enable_model_cpu_offload hooks into each component, with a CPU for the GPU."""

        def pre_forward(self, module, *args, **kwargs):
            calls.append(type(module).__name__)
            return super().pre_forward(module, *args, **kwargs)

    for component in (pipeline.vae, pipeline.unet):
        add_hook_to_module(component, CountingOffload(execution_device="cpu"))
    assert torch.equal(pipeline.reconstruct(images), expected)
    assert calls == ["AutoencoderKL", "AutoencoderKL"]
    again = pipeline([0], generator=seeded(), num_inference_steps=1, output_type="pt").images
    assert torch.equal(again, samples)
    assert calls[2:] == ["UNet2DModel", "AutoencoderKL"]


def test_other_schedulers_scale_their_input_and_noise(pipeline):
    pipeline = LatentDiffusionPipeline(pipeline.vae, pipeline.unet, EulerDiscreteScheduler())
    noise, label = torch.randn(1, 4, 4, 4), torch.tensor([0])
    latents = pipeline(
        label, latents=noise, guidance_scale=1, num_inference_steps=2, output_type="latent"
    ).images
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    expected = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(expected, t)
        output = pipeline.unet(model_input, t, class_labels=label).sample
        expected = scheduler.step(output, t, expected).prev_sample
    assert scheduler.init_noise_sigma > 2
    torch.testing.assert_close(latents, expected.detach(), rtol=0, atol=1e-3)


def test_labels_must_fit_the_latents(pipeline):
    with pytest.raises(ValueError, match="1 class labels do not fit 4 latents"):
        pipeline.denoise_latents(torch.zeros(4, 4, 4, 4), 1, class_labels=[0])


def test_labels_of_other_integer_types_and_names_that_are_numbers(pipeline):
    assert pipeline.get_label_ids(np.int64(1)) == [1]
    assert pipeline.get_label_ids(["2", "cat"]) == [2, 0]
    with pytest.raises(ValueError, match=r"label 1\.7"):
        pipeline.get_label_ids([1.7])
    pipeline.register_to_config(id2label={0: "1", 1: "2", 2: "10"})
    assert pipeline.get_label_ids(["1", "2", "10", "0"]) == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 3}, "label 3 is not in the model: use a number from 0 to 2"),
        ({"class_labels": -1}, "label -1"),
        ({"class_labels": ["cow"]}, "label cow .*or one of cat, dog, owl"),
        ({"class_labels": []}, "nothing to generate"),
        ({"num_images": 0}, "at least 1"),
        ({"guidance_scale": 3.0}, "guidance_scale needs class_labels"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"output_type": "jpeg"}, "output_type must be"),
        (
            {"class_labels": [0, 1], "generator": [torch.Generator()]},
            "1 generators for 2 images",
        ),
        (
            {"class_labels": [0, 1], "num_images": 2, "latents": torch.zeros(1, 4, 4, 4)},
            "1 latents",
        ),
        ({"latents": torch.zeros(1, 4, 3, 4)}, "do not fit the denoiser"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_labels_are_refused_without_classes(unconditional):
    with pytest.raises(ValueError, match="no classes"):
        unconditional(class_labels=[0])
