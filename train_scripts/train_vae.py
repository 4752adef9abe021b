"""Train an autoencoder: `accelerate launch train_scripts/train_vae.py --config RECIPE.yaml`."""

from functools import partial

from hf_latent.command import run_command
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.run.stop import StopSignal

if __name__ == "__main__":
    run_command(AutoencoderConfig, partial(train_autoencoder, stop=StopSignal()))
