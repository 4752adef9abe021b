from functools import partial
from pathlib import Path

import pytest
import torch

from hf_latent.data.images import sources
from hf_latent.data.images.open import open_images
from hf_latent.training.autoencoder import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.run.batches import GlobalBatchSampler, ProcessRows, ShardedDraws
from tests import small

SHORT = {
    "resize_mode": "pad",
    "max_train_samples": 40,
    "max_train_steps": 4,
    "train_batch_size": 8,
    "validation_steps": 2,
    "max_validation_samples": 12,
    "checkpointing_steps": None,
}


@pytest.fixture(autouse=True, scope="module")
def small_trainings():
    with small.small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", small.few_images)  # each is checked
        yield


def short_autoencoder(folder: Path, **changes) -> AutoencoderConfig:
    """Settings of a training in a folder's `autoencoder`."""
    return AutoencoderConfig(**{"output_dir": str(folder / "autoencoder"), **SHORT, **changes})


def short_denoiser(folder: Path, **changes) -> DenoiserConfig:
    """Settings of a training in a folder's `denoiser`, on the model of its `autoencoder`."""
    places = {
        "output_dir": str(folder / "denoiser"),
        "vae": str(folder / "autoencoder" / "model"),
    }
    return DenoiserConfig(**{**places, **SHORT, **changes})


def short_student(folder: Path, **changes) -> DistillationConfig:
    """Settings of a distillation in a folder's `student`, of the model in its `teacher`."""
    places = {"output_dir": str(folder / "student"), "model": str(folder / "teacher")}
    steps = {"num_inference_steps": 2, "teacher_num_inference_steps": 4}
    short = {
        name: x for name, x in SHORT.items() if name not in ("resize_mode", "max_train_samples")
    }
    return DistillationConfig(**{**places, **steps, **short, **changes})


def first_batch(config: AutoencoderConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and noise of the first step of a training of `short_autoencoder`."""
    rows = ProcessRows(config.train_batch_size)
    keys = GlobalBatchSampler(config.max_train_samples, rows, config.seed).keys(0)
    train = open_images(config).train
    images = torch.stack([train[key]["images"] for key in keys])
    draws = ShardedDraws(config.seed, "posterior", rows, torch.device("cpu"))
    return images, draws.normal((0, 0), 4, 8, 8)


@pytest.fixture
def autoencoder_config(tmp_path):
    return partial(short_autoencoder, tmp_path)


@pytest.fixture
def denoiser_config(tmp_path):
    return partial(short_denoiser, tmp_path)
