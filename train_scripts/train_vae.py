"""Train an autoencoder: `accelerate launch train_scripts/train_vae.py --config RECIPE.yaml`."""

from hf_latent.cli import main

if __name__ == "__main__":
    main(command="train-autoencoder")
