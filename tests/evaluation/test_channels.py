"""An autoencoder of other channels than the images is refused by every command, by one rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.images.reference import open_real_images
from hf_latent.evaluation.inspect import InspectConfig, inspect_autoencoders
from hf_latent.evaluation.inspection.images import open_fitting_images
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from tests.conftest import make_autoencoder, make_denoiser

COMMANDS: dict[str, Callable[..., Any]] = {
    "inspect": lambda vae, **c: inspect_autoencoders(InspectConfig(vae=str(vae), **c)),
    "encode": lambda vae, **c: encode_latents(EncodeConfig(vae=str(vae), **c)),
    "train-denoiser": lambda vae, **c: train_denoiser(DenoiserConfig(vae=str(vae), **c)),
    "train-autoencoder": lambda vae, **c: train_autoencoder(
        AutoencoderConfig(pretrained_vae=str(vae), **c)
    ),
    "evaluate": lambda vae, **c: open_real_images(
        EvaluateConfig(model="m", **c),
        LatentDiffusionPipeline(
            (loaded := load_autoencoder(str(vae))), make_denoiser(loaded), create_scheduler("flow")
        ),
    ),
}


def make_images(folder: Path, mode: str) -> str:
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("mode", "has", "takes"), [("RGB", 3, 1), ("L", 1, 3)])
def test_other_channels_than_the_images_are_refused(tmp_path, command, mode, has, takes):
    make_autoencoder(takes).save_pretrained(tmp_path / "vae")
    data = {"data": make_images(tmp_path / "images", mode), "output_dir": str(tmp_path / "out")}
    message = f"the images have {has} channels and the autoencoder takes {takes}: pass --channels"
    with pytest.raises(UserError, match=message) as refused:
        COMMANDS[command](tmp_path / "vae", **data, resolution=16)
    assert f"--channels {takes}" in str(refused.value)
    assert not list(tmp_path.glob("out/*"))


def test_channels_that_are_asked_for_are_converted_to(tmp_path):
    make_autoencoder(1).save_pretrained(tmp_path / "vae")
    data = make_images(tmp_path / "images", "RGB")
    config = InspectConfig(vae="v", data=data, output_dir="o", channels=1, validation_fraction=0.5)
    splits, *_ = open_fitting_images(config, {"v": make_autoencoder(1)}, 10)
    assert splits.image_shape == (1, 16, 16)
