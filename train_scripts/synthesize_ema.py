"""Make another weight average: `python train_scripts/synthesize_ema.py --run RUN ...`."""

from hf_latent.command import run_command
from hf_latent.training.averages.synthesize import SynthesizeEmaConfig, synthesize_ema

if __name__ == "__main__":
    run_command(SynthesizeEmaConfig, synthesize_ema)
