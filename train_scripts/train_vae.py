"""Train an autoencoder: `accelerate launch train_scripts/train_vae.py --config RECIPE.yaml`."""

from hf_latent.command import run_command
from hf_latent.training.autoencoder import AutoencoderConfig, run

if __name__ == "__main__":
    run_command(AutoencoderConfig, run)
