"""Compare models that differ in their autoencoder: reconstruction and generation."""

from hf_latent.command import run_command
from hf_latent.experiments.release.compare import CompareConfig, compare_models

if __name__ == "__main__":
    run_command(CompareConfig, compare_models)
