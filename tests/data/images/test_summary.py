import io
import logging

import numpy as np
import pytest
from PIL import Image, ImageCms

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.held_out import choose_held_out
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from tests.data.images.test_open import picture, write


def opened(folder, **settings):
    return open_images(ImagesConfig(**{"data": str(folder), "resolution": 8} | settings))


def warned(caplog):
    return [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]


@pytest.fixture
def caplog(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_latent"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_most_images_decide_the_channels_not_the_first(tmp_path, caplog):
    write(tmp_path, {"0.png": picture(0, channels=1)})
    write(tmp_path, {f"{i}.png": picture(i) for i in range(1, 10)})
    splits = opened(tmp_path)
    assert splits.image_shape == (3, 8, 8)
    assert "9 RGB, 1 grey" in caplog.text and "--channels 1" in caplog.text
    assert splits.summary.figures()["image_modes"] == "9 RGB, 1 grey"
    assert opened(tmp_path, channels=1).image_shape == (1, 8, 8)


def test_colour_that_is_lost_is_a_warning(tmp_path, caplog):
    write(tmp_path, {"0.png": picture(0)})
    write(tmp_path, {f"{i}.png": picture(i, channels=1) for i in range(1, 10)})
    assert opened(tmp_path).image_shape == (1, 8, 8)
    assert warned(caplog) == ["1 image without colour, which --channels 3 keeps"]


def test_an_opaque_alpha_is_no_transparency(tmp_path):
    for i in range(5):
        Image.fromarray(picture(i)).convert("RGBA").save(tmp_path / f"{i}.png")
    splits = opened(tmp_path)
    assert splits.image_shape == (3, 8, 8)
    assert splits.summary.figures()["image_modes"] == "5 opaque RGBA"


def test_grey_pixels_in_colour_files_are_told(tmp_path):
    for i in range(5):
        Image.fromarray(picture(i, channels=1)).convert("RGB").save(tmp_path / f"{i}.png")
    assert any("--channels 1 is enough" in line for line in opened(tmp_path).summary.lines())


def test_pages_that_are_dropped_are_counted(tmp_path, caplog):
    write(tmp_path, {f"{i}.png": picture(i) for i in range(4)})
    pages = [Image.fromarray(picture(10 + i)) for i in range(20)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.gif", save_all=True, append_images=pages[1:3])
    assert opened(tmp_path).summary.figures()["dropped_frames"] == 21
    (line,) = warned(caplog)
    assert line == "2 files with several pages or frames: only the first is used, 21 are left out"


def test_twelve_bits_in_sixteen_are_a_warning_that_names_the_range(tmp_path, caplog):
    for i in range(8):
        values = picture(i, channels=1).astype(np.uint16) * 16
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    dark = opened(tmp_path, resolution="12,16")
    (line,) = warned(caplog)
    assert "6% of the range" in line and "--value_range 0,4095" in line
    caplog.clear()
    bright = opened(tmp_path, resolution="12,16", value_range="0,4095")
    assert not warned(caplog)
    scaled = (dark.train.read() + 1) * 65535 / 4095 - 1
    assert (bright.train.read() - scaled.clamp(max=1)).abs().max() < 1e-3
    assert bright.validation_fingerprint == dark.validation_fingerprint
    assert bright.train.preprocessing == "crop to 12x16, 1 channels, values 0 to 4095"
    assert bright.train.identity != dark.train.identity


def test_pixels_without_a_fixed_range_have_a_value_range(tmp_path):
    for i in range(4):
        Image.fromarray(picture(i, channels=1) / np.float32(255)).save(tmp_path / f"{i}.tif")
    images = opened(tmp_path, value_range="0,1", resolution="12,16").train.read()
    expected = picture(int(opened(tmp_path, value_range="0,1").train.rows[0]), channels=1)
    assert np.abs(images[0, 0].numpy() - (expected / 127.5 - 1)).max() < 2e-5


@pytest.mark.parametrize("wrong", ["4095", "1,0", "0,nan", "a,b", "0,1,2", "0,inf"])
def test_a_wrong_value_range_names_the_flag(wrong):
    with pytest.raises(UserError, match=r"--value_range .* two numbers"):
        ImagesConfig(value_range=wrong)


def test_each_class_keeps_a_training_image():
    hashes = np.array([f"{x:016x}" for x in (1, 2, 2**63, 2**62, 3, 3)], "S64")
    labels = np.array([0, 1, 1, 1, 2, 2])
    assert choose_held_out(hashes, 0.05, labels).tolist() == [False, True] + [False] * 4
    assert choose_held_out(hashes, 0.05).tolist() == [True, True, False, False, True, True]
    backwards = choose_held_out(hashes[::-1], 0.05, labels[::-1])[::-1]
    assert backwards.tolist() == [False, True] + [False] * 4


def test_a_class_without_training_images_is_a_warning(tmp_path, caplog):
    write(tmp_path, {f"train/{'ab'[i % 2]}/{i}.png": picture(i) for i in range(8)})
    write(tmp_path, {"test/a/9.png": picture(9)})
    figures = opened(tmp_path, max_train_samples=1).summary.figures()
    assert figures["classes_without_images"] == 1 and figures["classes"] == 2
    assert any("1 of 2 classes have no training image" in line for line in warned(caplog))


def test_lines_are_said_once_and_sizes_told(tmp_path, caplog):
    write(tmp_path, {"0.png": picture(0, 4, 6), "1.png": picture(1), "2.png": picture(2, 20, 30)})
    lines = opened(tmp_path).summary.lines()
    assert "height x width: 4x6 to 20x30, median 12x16; 1 enlarged to cover 8x8" in lines
    said = len(caplog.records)
    assert said == len(lines)
    opened(tmp_path)
    assert len(caplog.records) == said


def wide_gamut():
    """An RGB profile with red and blue exchanged: its effect is plain to see."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = content.index(b"rXYZ"), content.index(b"bXYZ")
    content[red : red + 1], content[blue : blue + 1] = b"b", b"r"
    return bytes(content)


def test_colour_profiles_are_converted_unless_ignored(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = [wide_gamut(), srgb, b"damaged", None]
    for i, profile in enumerate(profiles):
        Image.new("RGB", (8, 8), (200, 100, 50 + i)).save(
            tmp_path / f"{i}.png", icc_profile=profile
        )
    splits = opened(tmp_path)
    figures = splits.summary.figures()
    assert (figures["converted_profiles"], figures["ignored_profiles"]) == (1, 1)
    both = [*splits.train, *splits.validation]
    colours = {tuple(((x["images"][:, 0, 0] + 1) * 127.5).round().int().tolist()) for x in both}
    plain = {(200, 100, 51), (200, 100, 52), (200, 100, 53)}
    assert plain < colours
    (converted,) = colours - plain
    assert np.abs(np.subtract(converted, (50, 100, 200))).max() <= 2
    kept = opened(tmp_path, color_profile="ignore")
    assert kept.summary.figures()["converted_profiles"] == 0
    assert kept.train.preprocessing.endswith(", colour profiles ignored")


def test_alpha_and_grey_keep_their_mode_with_a_profile():
    from hf_latent.data.images.pixels import decode_image

    array = picture(0, 8, 8, 4)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", icc_profile=wide_gamut())
    decoded = decode_image(file.getvalue())
    assert np.array_equal(decoded[:, :, 3], array[:, :, 3])
    assert np.abs(decoded[:, :, :3].astype(int) - array[:, :, 2::-1]).max() <= 2
