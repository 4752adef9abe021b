"""Train a denoiser: `accelerate launch train_scripts/train_unet.py --config RECIPE.yaml`."""

from functools import partial

from hf_latent.command import run_command
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.run.stop import StopSignal

if __name__ == "__main__":
    run_command(DenoiserConfig, partial(train_denoiser, stop=StopSignal()))
