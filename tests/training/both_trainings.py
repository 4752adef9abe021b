"""Run both trainings for a few steps in the launched processes; test_processes.py starts this."""

import sys
from pathlib import Path

import pytest
from accelerate import PartialState

from hf_latent.models.presets import DENOISERS
from hf_latent.training.autoencoder import AutoencoderConfig, train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.distillation import distill_denoiser
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.run.clock import TrainingClock
from tests.small import NARROW_DENOISER, shorten_trainings

DENOISERS["tiny"] |= NARROW_DENOISER
shorten_trainings(pytest.MonkeyPatch())
TrainingClock.LOGGING_STEPS = 1
folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
shared = {
    "resize_mode": "pad",
    "max_train_samples": 42,
    "train_batch_size": batch_size,
    "validation_steps": 1,
    "max_validation_samples": 7,
    "horizontal_flip": True,
    "ema_decay": 0.0,
    "lr_warmup_ratio": 0.0,
}
vae = train_autoencoder(
    AutoencoderConfig(
        **shared,
        # Adam amplifies the rounding of gradients of nearly 0, which a linear start has.
        initialization="random",
        learning_rate=1e-4,
        output_dir=str(folder / "vae"),
        max_train_steps=10,
        checkpointing_steps=1,
        checkpoints_total_limit=None,
        discriminator_weight=0.5,
        discriminator_start=2,
        discriminator_base_channels=16,
        discriminator_num_layers=2,
    )
)
state = PartialState()
(folder / f"process-{state.process_index}-of-{state.num_processes}").touch()
denoiser = train_denoiser(
    DenoiserConfig(
        **shared,
        output_dir=str(folder / "unet"),
        vae=str(vae.model_dir),
        max_train_steps=4,
    )
)
of_images = ("resize_mode", "max_train_samples", "horizontal_flip")
distill_denoiser(
    DistillationConfig(
        **{name: x for name, x in shared.items() if name not in of_images},
        output_dir=str(folder / "student"),
        model=str(denoiser.model_dir),
        num_inference_steps=2,
        teacher_num_inference_steps=2,
        max_train_steps=3,
    )
)
