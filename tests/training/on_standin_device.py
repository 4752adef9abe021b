"""Run a training on the stand-in device, and print how often each step waited for the device."""

import json
import os
import sys
from pathlib import Path

import pytest

os.environ["ACCELERATE_TORCH_DEVICE"] = "standin:0"

from hf_latent.models.presets import AUTOENCODERS, DENOISERS
from hf_latent.training.autoencoder import AutoencoderConfig, train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.run.clock import TrainingClock
from tests import standin_device
from tests.conftest import make_autoencoder
from tests.small import NARROW_AUTOENCODER, NARROW_DENOISER, shorten_trainings

STEPS = 12


class Enough(Exception):
    """Ends a training before it validates."""


def counted_steps(self: TrainingClock, *optimizers):
    for step in original_steps(self, *optimizers):
        if step:
            counted.append(dict(standin_device.waits))
        if step == STEPS:
            raise Enough
        standin_device.waits.clear()
        standin_device.Event.step = step
        yield step


AUTOENCODERS["tiny"] |= NARROW_AUTOENCODER
DENOISERS["tiny"] |= NARROW_DENOISER
shorten_trainings(pytest.MonkeyPatch())
counted: list[dict[str, int]] = []
original_steps, TrainingClock.steps = TrainingClock.steps, counted_steps
TrainingClock.LOGGING_STEPS = 5

folder, name, changes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
settings = {
    "output_dir": str(folder / "run"),
    "resize_mode": "pad",
    "max_train_samples": 40,
    "train_batch_size": 4,
    "max_validation_samples": 4,
    "horizontal_flip": True,
    **changes,
}
try:
    if name == "autoencoder":
        train_autoencoder(AutoencoderConfig(**settings))
    else:
        make_autoencoder(sample_size=32).save_pretrained(folder / "vae")
        train_denoiser(DenoiserConfig(**settings, vae=str(folder / "vae")))
except Enough:
    print(json.dumps(counted))
