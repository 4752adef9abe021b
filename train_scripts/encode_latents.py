"""Make a latent cache: `accelerate launch train_scripts/encode_latents.py --vae V --data D ...`."""

from hf_latent.cli import main

if __name__ == "__main__":
    main(command="encode")
