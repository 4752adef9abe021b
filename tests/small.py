"""Models and built-in images that train in a second, where their size is not what is tested.

`python -m tests.small PROGRAM ARGUMENTS` runs a script or a module with shorter trainings.
"""

import functools
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from datasets import DatasetDict

from hf_latent.data.fashion_mnist import load_fashion_mnist_sample
from hf_latent.data.images import sources
from hf_latent.models.presets import AUTOENCODERS, DENOISERS
from hf_latent.training import denoiser
from hf_latent.training.page import curves
from hf_latent.training.validation import denoiser as denoiser_validation

HELD_OUT = 50  # of the built-in images; 2,000 otherwise
NARROW_AUTOENCODER = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
NARROW_DENOISER = {
    "block_out_channels": (16, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


@functools.cache
def few_held_out() -> DatasetDict:
    """The built-in images with few held-out ones, as a denoiser encodes all of them."""
    whole = load_fashion_mnist_sample()
    return DatasetDict(train=whole["train"], test=whole["test"].select(range(HELD_OUT)))


@functools.cache
def few_images() -> DatasetDict:
    """The built-in images with 100 training images and few held-out ones."""
    images = few_held_out()
    return DatasetDict(images, train=images["train"].select(range(100)))


def shorten_trainings(patch: pytest.MonkeyPatch) -> None:
    """Hold few images out, and draw small pictures in two steps and one plot on a run's page."""
    patch.setitem(sources.BUILT_IN, "fashion_mnist", few_held_out)
    patch.setattr(denoiser_validation, "GRID_COLUMNS", 2)
    patch.setattr(denoiser, "FLOW_INFERENCE_STEPS", 2)
    patch.setattr(curves, "PANELS", curves.PANELS[:1])


@contextmanager
def small_trainings() -> Iterator[pytest.MonkeyPatch]:
    """Shorten trainings, and make the tiny presets narrower still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(AUTOENCODERS, "tiny", AUTOENCODERS["tiny"] | NARROW_AUTOENCODER)
        patch.setitem(DENOISERS, "tiny", DENOISERS["tiny"] | NARROW_DENOISER)
        shorten_trainings(patch)
        yield patch


if __name__ == "__main__":
    shorten_trainings(pytest.MonkeyPatch())
    del sys.argv[0]
    run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    run(sys.argv[0], run_name="__main__")
