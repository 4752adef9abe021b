"""Colour profiles of grey, CMYK and foreign colours; those of RGB are in test_summary.py."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from hf_latent.data.images.colour import to_srgb
from hf_latent.data.images.pixels import decode_image

D50 = np.array([0.9642, 1, 0.8249])
# XYZ relative to D50 -> linear sRGB, by Bradford's adaptation
# (http://www.brucelindbloom.com/index.html?Eqn_RGB_XYZ_Matrix.html).
XYZ_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
WHITE, CYAN, BLACK = (255, 128, 128), (160, 98, 98), (0, 128, 128)  # Lab, as bytes
GAMMA = 461 / 256  # near 1.8


def icc_profile(kind: bytes, space: bytes, pcs: bytes, **tags: bytes) -> bytes:
    """The smallest ICC profile of version 2.4 with these tags (ICC.1:2001-04, 6.1 and 6.2)."""
    table, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        place = 128 + 4 + 12 * len(tags) + len(content)
        table += struct.pack(">4sII", name.encode(), place, len(tag))
        content += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s28x", 0, 0x02400000, kind, space, pcs, b"acsp")
    header += struct.pack(">III", 0xF6D6, 0x10000, 0xD32D).ljust(60, b"\0")  # D50
    whole = header + table + content
    return struct.pack(">I", len(whole)) + whole[4:]


def cmyk_profile() -> bytes:
    """A table of 2 points an ink, in Lab: key covers all, and any other ink alone is cyan."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lab = [BLACK if key else CYAN if any(colour) else WHITE for *colour, key in inks]
    table = b"mft1" + struct.pack(">4xBBBx", 4, 3, 2)
    table += struct.pack(">9i", *(np.eye(3, dtype=int).ravel() << 16).tolist())
    ramp = bytes(range(256))
    table += ramp * 4 + np.array(lab, np.uint8).tobytes() + ramp * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", A2B0=table)


def grey_profile() -> bytes:
    curve = b"curv" + struct.pack(">4xIH", 1, round(GAMMA * 256))
    white = b"XYZ " + struct.pack(">4xIII", 0xF6D6, 0x10000, 0xD32D)
    return icc_profile(b"mntr", b"GRAY", b"XYZ ", wtpt=white, kTRC=curve)


def srgb(linear):
    """The curve of sRGB (IEC 61966-2-1), in 0 to 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lab_to_srgb(lab_bytes):
    """CIE Lab relative to D50, as bytes, in sRGB from 0 to 255."""
    lightness, a, b = np.asarray(lab_bytes, float)
    y = (lightness * 100 / 255 + 16) / 116
    f = np.array([y + (a - 128) / 500, y, y - (b - 128) / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return srgb(XYZ_TO_SRGB @ xyz)


def encoded(image, file_format, profile):
    file = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}
    image.save(file, file_format, icc_profile=profile, **options)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_its_profile(file_format):
    half = (np.array(WHITE) * 127 + np.array(CYAN) * 128) / 255
    patches = {(0, 0, 0, 0): WHITE, (255, 0, 0, 0): CYAN, (0, 0, 0, 255): BLACK}
    patches[128, 0, 0, 0] = half
    for inks, lab in patches.items():
        image = Image.new("CMYK", (8, 8), inks)
        decoded = decode_image(encoded(image, file_format, cmyk_profile()))
        assert decoded.shape == (8, 8, 3)
        assert np.abs(decoded - lab_to_srgb(lab)).max() <= 2, inks


def test_grey_is_converted_by_its_profile_and_stays_grey():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = srgb((levels / 255) ** GAMMA)
    assert np.abs(expected - levels).max() > 15
    decoded = decode_image(encoded(Image.fromarray(levels), "PNG", grey_profile()))
    assert decoded.shape == (16, 16, 1)
    assert np.abs(decoded[:, :, 0] - expected).max() <= 2
    with_alpha = Image.merge("LA", [Image.fromarray(levels), Image.fromarray(levels.T.copy())])
    decoded = decode_image(encoded(with_alpha, "PNG", grey_profile()))
    assert np.abs(decoded[:, :, 0] - expected).max() <= 2
    assert np.array_equal(decoded[:, :, 1], levels.T)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", grey_profile()),
        ("RGB", cmyk_profile()),
        ("RGB", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        ("L", cmyk_profile()),
        ("CMYK", grey_profile()),
    ],
)
def test_a_profile_of_other_colours_is_ignored(mode, profile):
    image = Image.new(mode, (4, 4), 100)
    found, use = to_srgb(image, profile)
    assert use == "ignored"
    assert found is image
