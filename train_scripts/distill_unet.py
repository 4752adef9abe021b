"""Distill a model: `accelerate launch train_scripts/distill_unet.py --model M ...`."""

from hf_latent.cli import main

if __name__ == "__main__":
    main(command="distill")
