import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin, UnidentifiedImageError

from hf_latent.data.images.pixels import (
    covering_size,
    decode_image,
    fit,
    padded_box,
    resize,
    stretch,
    to_channels,
    to_tensors,
)

GREY = (np.arange(48, dtype=np.uint8).reshape(6, 8) * 5).copy()
RGB = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
ALPHA = np.where(np.arange(48).reshape(6, 8) % 3, 255, 40).astype(np.uint8)
RGBA = np.dstack([RGB, ALPHA])
GREY_16 = (np.arange(48).reshape(6, 8) * 1391 + 7).astype(np.uint16)


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("array", "file_format", "options"),
    [
        (GREY, "PNG", {}),
        (GREY, "TIFF", {}),
        (GREY, "TIFF", {"compression": "tiff_lzw"}),
        (GREY, "BMP", {}),
        (RGB, "PNG", {}),
        (RGB, "TIFF", {}),
        (RGB, "BMP", {}),
        (RGB, "WEBP", {"lossless": True}),
        (RGBA, "PNG", {}),
        (RGBA, "TIFF", {}),
        (RGBA, "WEBP", {"lossless": True, "exact": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(array, file_format, options):
    decoded = decode_image(encode(Image.fromarray(array), file_format, **options))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, array.reshape(6, 8, -1))


@pytest.mark.parametrize(("array", "channels"), [(GREY, 1), (RGB, 3)])
def test_jpeg_is_read_as_pillow_reads_it(array, channels):
    content = encode(Image.fromarray(array), "JPEG", quality=95)
    decoded = decode_image(content)
    assert decoded.shape == (6, 8, channels)
    expected = np.asarray(Image.open(io.BytesIO(content))).reshape(6, 8, -1)
    assert np.array_equal(decoded, expected)


def test_reads_from_a_path(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert np.array_equal(decode_image(str(tmp_path / "a.png")), RGB)


@pytest.mark.parametrize(
    ("mode", "stored", "file_format"),
    [
        ("I;16", "<u2", "PNG"),
        ("I;16", "<u2", "TIFF"),
        ("I;16B", ">u2", "TIFF"),
        ("I", "<i4", "TIFF"),
    ],
)
def test_sixteen_bit_grey_keeps_all_bits(mode, stored, file_format):
    image = Image.frombytes(mode, (8, 6), GREY_16.astype(stored).tobytes())
    decoded = decode_image(encode(image, file_format))
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, GREY_16[:, :, None])


def test_palette_without_transparency_is_rgb():
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(encode(image)), expected)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency_is_rgba(transparency):
    image = Image.fromarray(RGB).quantize(16)
    decoded = decode_image(encode(image, transparency=transparency))
    entries = np.asarray(image)
    opacity = np.full(256, 255)
    if isinstance(transparency, int):
        opacity[transparency] = 0
    else:
        opacity[:3] = list(transparency)
    assert np.array_equal(decoded[:, :, 3], opacity[entries])
    assert np.array_equal(decoded[:, :, :3], np.asarray(image.convert("RGB")))


def test_transparent_colour_key_becomes_alpha():
    grey = decode_image(encode(Image.fromarray(GREY), transparency=40))
    assert np.array_equal(grey, np.dstack([GREY, np.where(GREY == 40, 0, 255)]))
    key = tuple(int(value) for value in RGB[2, 3])
    colour = decode_image(encode(Image.fromarray(RGB), transparency=key))
    assert np.array_equal(colour[:, :, 3], np.where((key == RGB).all(axis=2), 0, 255))


def test_one_bit_is_black_and_white():
    decoded = decode_image(encode(Image.fromarray(GREY > 100)))
    assert np.array_equal(decoded, np.where(GREY > 100, 255, 0)[:, :, None])


def test_grey_with_alpha_keeps_two_channels():
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    assert np.array_equal(decode_image(encode(image)), np.dstack([GREY, ALPHA]))


def test_cmyk_becomes_rgb():
    plain = np.zeros((6, 8, 4), np.uint8)
    plain[:, :4] = (255, 0, 0, 0)  # cyan ink alone
    image = Image.fromarray(plain, "CMYK")
    decoded = decode_image(encode(image, "TIFF"))
    assert np.array_equal(decoded[:, :4], np.broadcast_to([0, 255, 255], (6, 4, 3)))
    assert np.array_equal(decoded[:, 4:], np.full((6, 4, 3), 255))


def test_16_bit_colour_is_read_as_8_bit():
    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    pixels = np.array([0x0102, 0xFF80, 0x8000, 0xFFFF, 0, 0x7F7F], ">u2")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes())) + chunk(b"IEND", b"")
    assert decode_image(png).tolist() == [[[1, 255, 128], [255, 0, 127]]]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(orientation, upright, file_format):
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    stored = decode_image(encode(image, file_format, **options))
    decoded = decode_image(encode(image, file_format, exif=exif, **options))
    assert np.array_equal(decoded, upright(stored))


def test_exif_orientation_of_16_bit_grey():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encode(Image.fromarray(GREY_16), exif=exif))
    assert np.array_equal(decoded[:, :, 0], np.rot90(GREY_16, -1))


@pytest.mark.parametrize("file_format", ["GIF", "JPEG", "MPO", "JPEG2000", "PPM", "TGA", "ICO"])
def test_other_formats_in_a_folder_are_read(file_format):
    image = Image.fromarray(np.kron(RGB, np.ones((4, 4, 1), np.uint8)))
    second = {"save_all": True, "append_images": [image]} if file_format == "MPO" else {}
    assert decode_image(encode(image, file_format, **second)).shape[2] in (3, 4)


def test_eps_never_reaches_ghostscript(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: called.append("looked for"))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_args: called.append("run"))
    content = encode(Image.fromarray(RGB), "EPS")
    (tmp_path / "a.png").write_bytes(content)
    for encoded in (content, str(tmp_path / "a.png")):
        with pytest.raises(UnidentifiedImageError):
            decode_image(encoded)
    assert called == []


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8),
        np.full((6, 8), 70000, np.int32),
        np.full((6, 8), -1, np.int32),
    ],
    ids=["float", "above 16 bits", "negative"],
)
def test_pixels_without_a_fixed_range_stay_as_they_are(values):
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"))
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded[:, :, 0], values)


def test_pixels_that_are_not_finite_are_refused():
    image = Image.fromarray(np.array([[0, np.nan]], np.float32))
    with pytest.raises(ValueError, match="not finite"):
        decode_image(encode(image, "TIFF"))


def test_a_value_range_becomes_black_to_white():
    twelve_bit = np.array([0, 1, 2048, 4095, 5000], np.uint16)[None, :, None]
    tensor = to_tensors([stretch(twelve_bit, (0, 4095))])[0, 0, 0]
    assert tensor.tolist() == pytest.approx([-1, 2 / 4095 - 1, 4096 / 4095 - 1, 1, 1], abs=2e-5)
    hounsfield = np.array([-2000, -1000, 1000, 3000], np.float32)[None, :, None]
    tensor = to_tensors([stretch(hounsfield, (-1000, 3000))])[0, 0, 0]
    assert tensor.tolist() == pytest.approx([-1, -1, 0, 1], abs=2e-5)
    video = to_tensors([stretch(np.array([[[16, 235, 100]]], np.uint8), (16, 235))])[0, :, 0, 0]
    assert video.tolist() == pytest.approx([-1, 1, 168 / 219 - 1], abs=2e-5)


def test_a_value_range_leaves_alpha():
    stretched = stretch(RGBA, (0, 510))
    assert stretched.dtype == np.uint8
    assert np.array_equal(stretched[:, :, 3], ALPHA)
    assert np.abs(stretched[:, :, :3].astype(int) - RGB / 2).max() <= 0.5


def test_long_text_in_a_png_is_no_fault():
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "node " * 600_000, zip=True)
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert np.array_equal(decode_image(encode(Image.fromarray(RGB), pnginfo=text)), RGB)
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_alpha_is_composited_on_white():
    expected = np.rint(
        RGB * (ALPHA / 255)[:, :, None] + 255 * (1 - ALPHA / 255)[:, :, None]
    ).astype(np.uint8)
    assert np.array_equal(to_channels(RGBA, 3), expected)
    grey = np.dstack([GREY, ALPHA])
    expected = np.rint(GREY * (ALPHA / 255) + 255 * (1 - ALPHA / 255)).astype(np.uint8)
    assert np.array_equal(to_channels(grey, 1)[:, :, 0], expected)
    assert np.array_equal(to_channels(grey, 3), np.dstack([expected] * 3))


def test_rgba_to_grey_is_composited_then_luma():
    image = Image.fromarray(to_channels(RGBA, 3)).convert("L")
    assert np.array_equal(to_channels(RGBA, 1)[:, :, 0], np.asarray(image))


def test_grey_is_repeated_and_alpha_is_opaque():
    assert np.array_equal(to_channels(GREY[:, :, None], 3), np.dstack([GREY] * 3))
    opaque = np.full_like(GREY, 255)
    assert np.array_equal(to_channels(GREY[:, :, None], 4), np.dstack([GREY] * 3 + [opaque]))
    assert np.array_equal(to_channels(RGB, 4), np.dstack([RGB, opaque]))
    assert np.array_equal(to_channels(np.dstack([GREY, ALPHA]), 4), np.dstack([GREY] * 3 + [ALPHA]))
    wide = to_channels(GREY_16[:, :, None], 4)
    assert wide.dtype == np.uint16
    assert np.array_equal(wide, np.dstack([GREY_16] * 3 + [np.full_like(GREY_16, 65535)]))


def test_extreme_values_survive_16_bit_arithmetic():
    white = np.full((1, 1, 4), 65535, np.uint16)
    assert to_channels(white, 3).tolist() == [[[65535] * 3]]
    assert to_channels(white, 1).tolist() == [[[65535]]]


def test_tensor_mapping_is_exact_at_both_ends():
    tensor = to_tensors([np.array([[[0], [255]]], np.uint8)])[0]
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [[[-1.0, 1.0]]]
    assert to_tensors([np.array([[[0], [65535]]], np.uint16)])[0].tolist() == [[[-1.0, 1.0]]]


def test_all_16_bit_values_have_different_tensors():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    tensor = to_tensors([values])[0]
    expected = torch.arange(65536, dtype=torch.float64).reshape(1, 256, 256) / 32767.5 - 1
    assert torch.allclose(tensor.double(), expected, atol=1e-7, rtol=0)
    assert len(tensor.unique()) == 65536


def test_tensor_is_channels_first_and_contiguous():
    tensor = to_tensors([RGB[:, ::-1]])[0]
    assert tensor.shape == (3, 6, 8)
    assert tensor.is_contiguous()
    assert torch.equal(tensor[0, 0, 0], torch.tensor(RGB[0, 7, 0] / 127.5 - 1).float())


def test_16_bit_resize_is_finer_than_8_bit():
    ramp = np.tile(np.linspace(1000, 1255, 32), (16, 1)).astype(np.uint16)[:, :, None]
    half = resize(ramp, 8, 16)
    assert half.dtype == np.uint16
    inner = half[:, 2:-2, 0].astype(float)
    pairs = (ramp[0, 4:-4:2, 0].astype(float) + ramp[0, 5:-4:2, 0]) / 2
    assert np.abs(inner - pairs).max() <= 1  # of 65535: a detour through 8 bits would be 257 off


@pytest.mark.parametrize("size", [(20, 33), (90, 80)])
def test_16_bit_edges_overshoot_like_8_bit_ones(size):
    # Black and white alone, so that the 8-bit result is a reference.
    blocks = (np.indices((50, 70)).sum(axis=0) // 9 % 2 * 255).astype(np.uint8)[:, :, None]
    fine = resize(to_channels(blocks.astype(np.uint16) * 257, 4), *size)
    assert fine.dtype == np.uint16
    assert np.abs(fine[:, :, :3] / 257 - resize(blocks, *size)).max() <= 1.01
    assert (fine[:, :, 3] == 65535).all()


def test_same_size_is_left_alone():
    assert resize(RGB, 6, 8) is RGB


def test_resize_weights_colour_by_alpha():
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, :4] = (200, 100, 50, 255)
    array[:, 4:] = (0, 255, 0, 0)  # invisible green must not bleed
    small = resize(array, 4, 4)
    visible = small[small[:, :, 3] > 100]
    assert np.abs(visible[:, :3].astype(int) - (200, 100, 50)).max() <= 3


def test_constant_images_stay_constant():
    for dtype, value in ((np.uint8, 255), (np.uint16, 65535), (np.uint16, 0)):
        array = np.full((40, 30, 1), value, dtype)
        assert np.array_equal(resize(array, 17, 50), np.full((17, 50, 1), value, dtype))


def test_shrinking_is_antialiased():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert np.abs(resize(board, 16, 16)[2:-2, 2:-2].astype(float) - 127.5).max() < 6


@pytest.mark.parametrize(
    ("image", "target", "covered"),
    [
        ((100, 200), (48, 80), (48, 96)),
        ((200, 100), (48, 80), (160, 80)),
        ((24, 40), (48, 80), (48, 80)),
        ((33, 77), (32, 32), (32, 75)),
    ],
)
def test_cover_geometry(image, target, covered):
    assert covering_size(*image, *target) == covered
    array = np.zeros((*image, 1), np.uint8)
    assert fit(array, *target, "crop").shape == (*target, 1)


def test_centre_crop_takes_the_middle():
    array = np.tile(np.arange(120, dtype=np.uint8), (48, 1))[:, :, None]
    cropped = fit(array, 48, 80, "crop")
    assert np.array_equal(cropped[0, :, 0], np.arange(20, 100))


@pytest.mark.parametrize(
    ("image", "target"),
    [((100, 230), (48, 80)), ((23, 90), (48, 40)), ((90, 23), (31, 17)), ((500, 61), (7, 9))],
)
@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "grey16", "grey16 in 4 channels"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_crop_equals_that_of_the_whole_resized_image(image, target, kind, seed):
    draw = np.random.default_rng(9)
    limit, dtype = (65536, np.uint16) if "16" in kind else (256, np.uint8)
    channels = {"rgb": 3, "rgba": 4}.get(kind, 1)
    array = draw.integers(0, limit, (*image, channels)).astype(dtype)
    if kind == "grey16 in 4 channels":
        array = to_channels(array, 4)
    whole = resize(array, *covering_size(*image, *target))
    spare = whole.shape[0] - target[0], whole.shape[1] - target[1]
    generator = None if seed is None else np.random.default_rng(seed)
    found = fit(array, *target, "crop", generator)
    top, left = spare[0] // 2, spare[1] // 2
    if seed is not None:
        again = np.random.default_rng(seed)
        top, left = again.integers(spare[0] + 1), again.integers(spare[1] + 1)
    expected = whole[top : top + target[0], left : left + target[1]]
    assert found.dtype == dtype
    difference = np.abs(found.astype(int) - expected)
    if kind == "rgba":  # where hardly anything is visible, its colour is rounded coarsely
        difference = difference[expected[:, :, 3] > 128]
    assert difference.max() <= 2


def test_pixel_centres_of_a_crop():
    # A ramp stays a ramp: pixel x of the resized image shows the source at (x + 0.5) / 2 - 0.5.
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (20, 1))[:, :, None]
    middle = fit(ramp, 40, 60, "crop")  # resized to (40, 200), cut from column 70 on
    expected = ((np.arange(70, 130) + 0.5) / 2 - 0.5) * 2
    assert np.abs(middle[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("across", [False, True])
def test_the_crop_of_a_sliver_resamples_only_the_part_in_it(across, seed):
    sliver = np.full((1, 50_000_000, 1), 77, np.uint8)
    generator = None if seed is None else np.random.default_rng(seed)
    cropped = fit(sliver.transpose(1, 0, 2) if across else sliver, 64, 64, "crop", generator)
    assert np.array_equal(cropped, np.full((64, 64, 1), 77))


def test_random_crop_reaches_both_edges():
    array = np.tile(np.arange(12, dtype=np.uint8), (8, 1))[:, :, None]
    generator = np.random.default_rng(0)
    lefts = {int(fit(array, 8, 8, "crop", generator)[0, 0, 0]) for _ in range(100)}
    assert lefts == {0, 1, 2, 3, 4}


def test_pad_centres_without_enlarging():
    padded = fit(np.full((28, 28, 1), 9, np.uint8), 32, 32, "pad")
    assert np.array_equal(padded[2:30, 2:30], np.full((28, 28, 1), 9))
    padded[2:30, 2:30] = 0
    assert not padded.any()


def test_pad_shrinks_larger_images():
    assert padded_box(100, 100, 48, 80) == (0, 16, 48, 48)
    assert padded_box(96, 320, 48, 80) == (12, 0, 24, 80)
    padded = fit(np.full((100, 100, 4), 255, np.uint8), 48, 80, "pad")
    assert padded[:, 16:64].min() == 255
    assert not padded[:, :16].any() and not padded[:, 64:].any()


def test_a_sliver_keeps_one_pixel():
    assert padded_box(1, 1000, 32, 32) == (15, 0, 1, 32)
