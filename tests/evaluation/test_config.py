from dataclasses import replace

import pytest

from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig, ImagesOfModelConfig


@pytest.fixture
def config() -> EvaluateConfig:
    return EvaluateConfig(model="model", output_dir="out")


@pytest.mark.parametrize("name", ["num_images", "num_inference_steps", "batch_size"])
def test_numbers_out_of_range_are_rejected(config, name):
    with pytest.raises(UserError, match=f"--{name} must be a whole number above 0, not 0"):
        replace(config, **{name: 0})


def test_images_have_the_models_size_and_no_random_crops_or_flips():
    config = ImagesOfModelConfig(crop="random", horizontal_flip=True, seed=3)
    images = config.images_config((24, 40))
    assert (images.resolution, images.channels, images.seed) == ("24,40", None, 3)
    assert (images.crop, images.horizontal_flip) == ("center", False)
    given = replace(config, resolution=16, channels=3).images_config((24, 40))
    assert (given.resolution, given.channels) == (16, 3)


@pytest.mark.parametrize(("train", "count"), [(26_000, 10_000), (13_000, 6500), (21, 10)])
def test_the_default_is_the_largest_possible_number_of_images(config, train, count):
    assert replace(config, num_images=None).choose_num_images(train) == count


@pytest.mark.parametrize(("train", "num_images"), [(21, 11), (100, 51), (100, 9)])
def test_too_few_or_too_many_images_are_rejected_with_the_limits(config, train, num_images):
    with pytest.raises(UserError, match=f"from 10 to half of them, {train // 2}$") as error:
        replace(config, num_images=num_images).choose_num_images(train)
    assert "\n" not in str(error.value)


def test_too_few_training_images_are_rejected(config):
    with pytest.raises(UserError, match="19 training images are too few to measure"):
        replace(config, num_images=None).choose_num_images(19)


@pytest.mark.parametrize("num_images", [10, 50])
def test_a_possible_number_of_images_is_accepted(config, num_images):
    assert replace(config, num_images=num_images).choose_num_images(100) == num_images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": -0.5}, "--guidance_scale must be a number at least 0"),
        (
            {"dataloader_num_workers": -1},
            "--dataloader_num_workers must be a whole number at least 0",
        ),
        ({"resolution": "x"}, "--resolution x"),
        ({"seed": -1}, "--seed must be a whole number at least 0"),
        ({"channels": 0}, "--channels must be a whole number above 0, not 0"),
    ],
)
def test_invalid_settings_are_rejected(config, changes, message):
    with pytest.raises(UserError, match=message):
        replace(config, **changes)
