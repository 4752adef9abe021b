import itertools
import json
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from PIL import Image

import compare_pixels
from compare_pixels import ComparePixelsConfig, load_pixels
from hf_latent.data.images import sources
from hf_latent.errors import UserError
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images, small_trainings
from train_pixels import PixelsConfig, train_pixels

SMALL = (32, 32)  # channels


def ticks(seconds):
    """A clock that goes on by so many seconds whenever it is read."""
    return itertools.count(0, seconds).__next__


@pytest.fixture
def grey_folder(tmp_path):
    """Dark images of the class a and bright ones of the class b."""
    for name, value in (("a", 32), ("b", 224)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(12):
            Image.new("L", (8, 8), value + i % 3).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_a_denoiser_of_pixels_learns_its_classes(grey_folder, tmp_path):
    config = PixelsConfig(
        data=str(grey_folder),
        resolution=8,
        output_dir=str(tmp_path / "out"),
        block_out_channels=SMALL,
        max_train_minutes=5,
    )
    train_pixels(config, ticks(2.0))
    figures = json.loads((tmp_path / "out" / "training.json").read_text())
    assert figures["images"] == 16 * figures["steps"] and 145 < figures["steps"] <= 150
    pipeline = load_pixels(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.num_classes == 2
    (images,) = pipeline(
        [0, 1] * 4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
    )
    dark, bright = images[::2].mean().item(), images[1::2].mean().item()
    assert dark == pytest.approx(33 / 127.5 - 1, abs=0.25)
    assert bright == pytest.approx(225 / 127.5 - 1, abs=0.25)
    UNet2DModel.from_pretrained(tmp_path / "out" / "unet")  # plain diffusers
    FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out" / "scheduler")


def test_both_are_trained_for_equal_minutes_and_measured(tmp_path, monkeypatch):
    with small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
        patch.setitem(compare_pixels.VAE, "fold_samples", 20)
        patch.setattr(compare_pixels, "load_feature_extractor", lambda name: ShortVectors())
        patch.setattr(compare_pixels, "SHOWN_CLASSES", 2)
        patch.setattr(compare_pixels, "SHOWN_COLUMNS", 1)
        patch.setattr(compare_pixels, "shown_name", "the name of {}".format)
        config = ComparePixelsConfig(
            data="fashion_mnist",
            resolution=32,
            resize_mode="pad",
            output_dir=str(tmp_path),
            minutes=4,
            vae_channels=[8, 8, 8],
            pixel_channels=SMALL,
            max_train_samples=80,
            num_images=40,
            num_inference_steps=2,
        )
        first = replace(config, parts=["latents", "measure"])
        compare_pixels.compare_pixels(first, ticks(6.0))
        assert not (tmp_path / "comparison.json").exists()  # one of the two is not there yet
        made = [tmp_path / "latents" / name for name in ("training.json", "measured.json")]
        times = [path.stat().st_mtime_ns for path in made]
        compare_pixels.compare_pixels(config, ticks(6.0))  # does nothing of the first part again
        assert [path.stat().st_mtime_ns for path in made] == times
        report = json.loads((tmp_path / "comparison.json").read_text())
        compare_pixels.compare_pixels(replace(config, num_images=20), ticks(6.0))
        again = json.loads((tmp_path / "comparison.json").read_text())
    assert report["data"] == "the name of fashion_mnist"  # no path of this machine
    assert report["latents_minutes"] == pytest.approx(4, abs=1)
    assert report["pixels_minutes"] == pytest.approx(report["latents_minutes"], abs=0.2)
    assert report["latents_steps"] > 1 and report["pixels_steps"] > 20
    assert report["real_fd"] < min(report["latents_fd"], report["pixels_fd"])
    assert report["real_fd"] < report["latents_floor_fd"]
    assert report["latents_evaluations"] == report["pixels_evaluations"] == 4
    for name in ("latents", "pixels"):
        assert Image.open(tmp_path / f"{name}.png").size[1] == 2 * 64
    assert (again["num_images"], again["latents_steps"]) == (20, report["latents_steps"])
    assert again["latents_fd"] != report["latents_fd"]  # other settings are measured anew
    assert again["pixels_fd"] != report["pixels_fd"]


def test_images_without_classes_are_refused_in_words(grey_folder, tmp_path):
    config = ComparePixelsConfig(
        data=str(grey_folder / "a"), resolution=8, minutes=1, output_dir=str(tmp_path / "out")
    )
    with pytest.raises(UserError, match="has no classes"):
        compare_pixels.compare_pixels(config)
    assert not (tmp_path / "out").exists()
