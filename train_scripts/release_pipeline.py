"""Release a trained and evaluated model: its weights, its reports and its card."""

from hf_latent.command import run_command
from hf_latent.experiments.release.pipeline import ReleasePipelineConfig, release_pipeline

if __name__ == "__main__":
    run_command(ReleasePipelineConfig, release_pipeline)
