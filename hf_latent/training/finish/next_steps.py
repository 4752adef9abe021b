"""What comes after a training: where its model is, and commands to go on with."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_latent.data.images.config import ImagesConfig, select_image_settings
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.run.accelerator import TrainingConfig

# Settings that only a training has.
OF_TRAININGS = {"crop", "horizontal_flip", "seed", "validation_fingerprint"}


def command_line(command: str, **settings: Any) -> str:
    """Return a command that a shell runs, indented; a setting of None is left out."""
    flags = (f"--{name} {shlex.quote(str(x))}" for name, x in settings.items() if x is not None)
    return " ".join([f"  hf-latent {command}", *flags])


def image_settings(config: ImagesConfig) -> dict[str, Any]:
    """Return `data` and the settings of the images that are not the defaults."""
    defaults = asdict(ImagesConfig())
    changed = {k: x for k, x in select_image_settings(config).items() if x != defaults[k]}
    return {"data": config.data, **changed}


def resume(config: TrainingConfig, command: str) -> str:
    """Return lines for a training that has not finished: how to go on with it."""
    run = Path(config.output_dir)
    settings = {"config": run / "config.yaml", "resume_from_checkpoint": "latest"}
    return "\n".join(["if it was stopped or killed, resume it:", command_line(command, **settings)])


def after_autoencoder(config: AutoencoderConfig) -> str:
    """Return lines for the terminal: inspect the autoencoder, then train a denoiser."""
    run = Path(config.output_dir)
    images = image_settings(config)
    measured = {name: x for name, x in images.items() if name not in OF_TRAININGS}
    inspection, denoiser = (run.with_name(f"{run.name}-{x}") for x in ("inspect", "denoiser"))
    lines = [
        f"the model is in {run / 'model'}",
        "look at what it keeps, then train a denoiser on its latents:",
        command_line("inspect", vae=run / "model", **measured, output_dir=inspection),
        command_line("train-denoiser", vae=run / "model", **images, output_dir=denoiser),
    ]
    return "\n".join(lines)


def after_denoiser(config: DenoiserConfig) -> str:
    """Return lines for the terminal: generate, evaluate, push."""
    run = Path(config.output_dir)
    images = {"data": "IMAGES"}  # a latent cache does not say where its images are
    if config.latents is None:
        images = {k: x for k, x in image_settings(config).items() if k not in OF_TRAININGS}
    return use_model(run, images)


def after_distillation(config: DistillationConfig) -> str:
    """Return lines for the terminal: generate, evaluate, push."""
    return use_model(Path(config.output_dir), {"data": "IMAGES"})


def use_model(run: Path, images: dict[str, Any]) -> str:
    """Return lines for the terminal: generate with a run's model, evaluate it, push it.

    Args:
        run: the folder.
        images: settings of the images to measure it with.
    """
    evaluation = run.with_name(f"{run.name}-evaluate")
    lines = [
        f"the model is in {run / 'model'}",
        "draw with it, measure it, send it to the Hub:",
        command_line("generate", model=run / "model", output=run / "grid.png"),
        command_line("evaluate", model=run / "model", **images, output_dir=evaluation),
        command_line("push", model=run / "model", repo_id="USER/NAME"),
    ]
    return "\n".join(lines)
