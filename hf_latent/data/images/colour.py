"""Convert images from the colour profile (ICC) embedded in their file to sRGB."""

import io
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Literal

from PIL import Image, ImageCms

# If sRGB differs by at most this much of 255, the profile is sRGB itself, rounded: pixels stay.
SAME = 2
ProfileUse = Literal["sRGB", "converted", "ignored"]


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, ProfileUse]:
    """Convert an image to sRGB with perceptual intent, as browsers do; alpha stays.

    Args:
        image: of mode L, LA, RGB, RGBA or CMYK.
        profile: the content of its ICC profile.

    Returns:
        The image, CMYK as RGB and others in their mode; and what was done with the profile:
        `sRGB`, nothing was to be done; `ignored`, it is damaged or of other colours than the image.
    """
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colour = image if alpha is None else image.convert(image.mode[:-1])
    try:
        conversion = _conversion(profile, colour.mode)
    except (ImageCms.PyCMSError, OSError):
        return image, "ignored"
    if conversion is None:
        return image, "sRGB"
    converted = conversion(colour)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, "converted"


@lru_cache(maxsize=64)
def _conversion(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return what converts an image of mode L, RGB or CMYK; None for a profile that is sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")

    def convert(image: Image.Image) -> Image.Image:
        return transform.apply(image)

    if mode == "CMYK":
        return convert
    if mode == "L":  # all channels of the result are equal
        ramp = bytes(range(256))
        curve = convert(Image.frombytes("L", (256, 1), ramp)).getchannel("G").tobytes()
        return None if _same(ramp, curve) else lambda image: image.point(list(curve))
    levels = bytes(value for colour in product(range(0, 256, 15), repeat=3) for value in colour)
    sample = Image.frombytes("RGB", (len(levels) // 3, 1), levels)
    return None if _same(levels, convert(sample).tobytes()) else convert


def _same(before: bytes, after: bytes) -> bool:
    return all(abs(x - y) <= SAME for x, y in zip(before, after, strict=True))
