"""Folders of images, and what the sources make of them."""

import numpy as np
from PIL import Image

from hf_latent.data.images.sources import Choice, open_source


def write(root, *paths):
    """Write a black PNG at each path, whatever its ending."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / path, "PNG")
    return root


def opened(data, **choice):
    return open_source(str(data), Choice(**choice))
