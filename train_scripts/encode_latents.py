"""Make a latent cache: `accelerate launch train_scripts/encode_latents.py --vae V --data D ...`."""

from hf_latent.command import run_command
from hf_latent.training.latents.encode import EncodeConfig, run

if __name__ == "__main__":
    run_command(EncodeConfig, run)
