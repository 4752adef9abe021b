"""Both trainings, short, in as many processes as were launched: a script for test_processes.py."""

import sys
from pathlib import Path

from hf_latent.training.autoencoder import AutoencoderConfig, train_autoencoder
from hf_latent.training.denoiser import DenoiserConfig, train_denoiser

folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
shared = {
    "resize_mode": "pad",
    "max_train_samples": 42,
    "max_train_steps": 4,
    "train_batch_size": batch_size,
    "validation_steps": 1,
    "max_validation_samples": 7,
    "horizontal_flip": True,
    "ema_decay": 0.0,
    "lr_warmup_ratio": 0.0,
}
vae = train_autoencoder(AutoencoderConfig(**shared, output_dir=str(folder / "vae")))
train_denoiser(DenoiserConfig(**shared, output_dir=str(folder / "unet"), vae=str(vae.model_dir)))
