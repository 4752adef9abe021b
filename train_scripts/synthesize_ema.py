"""Make another weight average: `python train_scripts/synthesize_ema.py --run RUN ...`."""

from hf_latent.cli import main

if __name__ == "__main__":
    main(command="synthesize-ema")
