"""Pictures for a card, small enough for a page."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hf_latent.output import replaced_whole

LONGEST_SIDE = 1600


def copy_picture(source: Path, target: Path) -> None:
    """Copy a picture, and shrink a large one.

    Args:
        source: a PNG file that this package wrote, of any size.
        target: the file to create or replace; its longest side has at most 1,600 pixels.
    """
    # Image.open refuses very large pictures, in case a stranger made them.
    with PngImageFile(source) as picture, replaced_whole(target) as temporary:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(temporary)
