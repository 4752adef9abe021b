"""Pictures for a card, small enough for a page."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hf_latent.output import replaced_whole

LONGEST_SIDE = 1600


def copy_picture(source: Path, target: Path) -> None:
    """Copy a picture, and make a large one smaller.

    Args:
        source: a PNG file of our own, of any size.
        target: the file to make or replace; its longest side has at most 1,600 pixels.
    """
    # Not Image.open: it refuses a large picture, as a stranger's might be.
    with PngImageFile(source) as picture, replaced_whole(target) as temporary:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(temporary)
