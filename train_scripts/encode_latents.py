"""Make a latent cache: `accelerate launch train_scripts/encode_latents.py --vae V --data D ...`."""

from hf_latent.command import run_command
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.run.stop import StopSignal

if __name__ == "__main__":
    StopSignal("stopped: run the same command to continue; finished files are kept")
    run_command(EncodeConfig, encode_latents)
