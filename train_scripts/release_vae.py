"""Release a trained autoencoder: measure it, and write its card beside it."""

from hf_latent.command import run_command
from hf_latent.experiments.release.autoencoder import ReleaseConfig, release_autoencoder

if __name__ == "__main__":
    run_command(ReleaseConfig, release_autoencoder)
