"""Train a denoiser: `accelerate launch train_scripts/train_unet.py --config RECIPE.yaml`."""

from hf_latent.command import run_command
from hf_latent.training.denoiser import DenoiserConfig, run

if __name__ == "__main__":
    run_command(DenoiserConfig, run)
