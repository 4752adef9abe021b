"""Images in the data's own values, and pictures of any number of channels."""

import json

import numpy as np
import pytest
import torch

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import IMAGE_VALUES, from_values, shown_channels, to_values
from tests.conftest import make_autoencoder, make_denoiser

RANGES = [[10.0, 20.0], [0.0, 4095.0], [-1000.0, 3000.0], [0.0, 1.0], [5.0, 6.0], [100.0, 65535.0]]


def make_pipeline(channels=6, shown=(0, 2, 5), ranges=RANGES) -> LatentDiffusionPipeline:
    vae = make_autoencoder(channels)
    values = {"range": ranges, "dtype": "uint16", "shown": shown and list(shown)}
    vae.register_to_config(**{IMAGE_VALUES: values})
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("flow"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, output_type):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_images": 2, "num_inference_steps": 2, "generator": generator}
    return pipeline(output_type=output_type, **settings).images


@pytest.mark.parametrize("ranges", [RANGES, [[0.0, 4095.0]], None])
def test_values_and_images_are_an_inverse_pair(ranges):
    vae = make_autoencoder(6)
    if ranges:
        vae.register_to_config(**{IMAGE_VALUES: {"range": ranges, "dtype": "x", "shown": [0]}})
    low, high = np.array(ranges or [[0, 1]]).T[:, :, None, None]
    images = torch.rand(2, 6, 8, 8) * 2 - 1
    expected = low + (images.numpy() + 1) / 2 * (high - low)
    values = to_values(vae, images)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(from_values(vae, values), images, rtol=0, atol=1e-4)
    assert torch.equal(to_values(vae, images * 9), to_values(vae, (images * 9).clamp(-1, 1)))


def test_a_range_that_is_narrow_for_float32_gives_no_nan():
    vae = make_autoencoder(2)
    narrow = [[1e9, 1e9 + 1], [0.0, 1.0]]  # the first two are one number in float32
    vae.register_to_config(**{IMAGE_VALUES: {"range": narrow, "dtype": "x", "shown": [0]}})
    images = torch.tensor([-1.0, 1.0]).repeat(1, 2, 4, 4)
    back = from_values(vae, to_values(vae, images))
    assert back.isfinite().all() and torch.equal(back[:, 1], images[:, 1])


def test_arrays_come_back_in_the_values_of_the_data(tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())
    assert config[IMAGE_VALUES] == {"range": RANGES, "dtype": "uint16", "shown": [0, 2, 5]}
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    unit = generate(pipeline, "pt").permute(0, 2, 3, 1).numpy()
    low, high = np.array(RANGES).T
    for array in (generate(pipeline, "np"), generate(loaded, "np")):
        assert array.dtype == np.float32 and array.shape == (2, 16, 16, 6)
        np.testing.assert_allclose(array, low + unit * (high - low), rtol=1e-5, atol=1e-3)


def test_arrays_are_taken_in_the_values_of_the_data():
    pipeline = make_pipeline()
    images = torch.rand(2, 6, 16, 16) * 2 - 1
    values = to_values(pipeline.vae, images).permute(0, 2, 3, 1).numpy()
    expected = to_values(pipeline.vae, pipeline.reconstruct(images) * 2 - 1)
    reconstructed = pipeline.reconstruct(values, "np")
    np.testing.assert_allclose(
        reconstructed, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-3, atol=1e-3
    )
    started = pipeline(image=values, strength=0.0, output_type="np", num_inference_steps=2).images
    np.testing.assert_allclose(started, reconstructed, rtol=1e-3, atol=1e-3)


def test_a_model_without_a_range_has_arrays_from_zero_to_one(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    unit = generate(pipeline, "pt").permute(0, 2, 3, 1).numpy()
    assert np.array_equal(generate(pipeline, "np"), unit)


@pytest.mark.parametrize(("shown", "mode"), [((0, 2, 5), "RGB"), ((3,), "L"), ((1, 1, 0), "RGB")])
def test_pictures_show_the_chosen_channels(shown, mode):
    pipeline = make_pipeline(shown=shown)
    unit = generate(pipeline, "pt")[:, list(shown)].permute(0, 2, 3, 1).numpy()
    for picture, image in zip(generate(pipeline, "pil"), unit, strict=True):
        assert picture.mode == mode
        found = np.asarray(picture).reshape(16, 16, len(shown))
        assert np.array_equal(found, (image * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("channels", "shown"),
    [(1, None), (2, [0, 1, 1]), (3, None), (4, None), (5, [0, 1, 2]), (6, [0, 1, 2])],
)
def test_without_a_choice_the_first_channels_are_shown(channels, shown):
    assert shown_channels(make_autoencoder(channels)) == shown
