"""The two trainings of each pair of a sweep: equal in all but the latent, and resumable."""

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_latent.experiments.quickstart import AUTOENCODER, DENOISER
from hf_latent.experiments.sweep.config import Pair, SweepConfig
from hf_latent.experiments.sweep.plan import FOLD_SAMPLES, WATCHED_IMAGES, Plan
from hf_latent.models.presets import Compression
from hf_latent.output import read_json, write_json
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.run.clock import TrainingSummary

# A killed training loses what came after its last checkpoint.
CHECKPOINTING_STEPS = 200
# Only at the end: validation between steps would take of a training's minutes, more of a slow one.
VALIDATION_STEPS = 10**9


def latent_kl_weight(kl_weight: float, compression: Compression) -> float:
    """Return the trainer's weight of the KL for a price of a nat that is equal for all pairs.

    The trainer's loss is `D + w K`: D the mean error of an image value, K the mean KL of a latent
    value. With M image values and N latent values a nat of an image then costs `w M / N` of its
    summed error: LDM's weight. Were w equal, small latents would pay more for each bit than large
    ones, and the sweep would compare prices. At an equal price every autoencoder stops at the
    same slope of its rate-distortion curve, `dD/dR` (Alemi et al. 2018, section 3), and pairs
    differ in what their shape can hold.

    Args:
        kl_weight: LDM's.
        compression: of the pair.
    """
    return kl_weight / compression.ratio


def training_settings(config: SweepConfig, plan: Plan) -> dict[str, Any]:
    """Return what both trainings of all pairs share."""
    return {
        **asdict(config.images_config()),
        "overwrite_output_dir": True,
        "resume_from_checkpoint": "latest",
        "checkpointing_steps": CHECKPOINTING_STEPS,
        "checkpoints_total_limit": 1,
        "validation_fingerprint": plan.validation_fingerprint,
    }


def autoencoder_config(
    config: SweepConfig, plan: Plan, pair: Pair, folder: Path, compression: Compression
) -> AutoencoderConfig:
    """Return the settings of a pair's first training: quickstart's, with the released recipe's L2.

    The released recipe's weight of the KL, 3e-4 at 4 times fewer values, is LDM's 1.2e-3.
    """
    changes: dict[str, Any] = {
        "reconstruction_loss": "l2",
        "kl_weight": latent_kl_weight(config.kl_weight, compression),
        "preset": config.preset,
        "latent_channels": pair.channels,
        "block_out_channels": list(config.widths(pair.factor)),
        "validation_steps": VALIDATION_STEPS,
        "max_validation_samples": WATCHED_IMAGES,
        "fold_samples": FOLD_SAMPLES,
        "max_train_minutes": plan.autoencoder_minutes,
        "output_dir": str(folder / "autoencoder"),
    }
    return AutoencoderConfig(**AUTOENCODER | training_settings(config, plan) | changes)


def denoiser_config(config: SweepConfig, plan: Plan, folder: Path) -> DenoiserConfig:
    """Return the settings of a pair's second training: quickstart's."""
    changes: dict[str, Any] = {
        "vae": str(folder / "autoencoder" / "model"),
        "preset": config.denoiser_preset,
        "validation_steps": VALIDATION_STEPS,
        "max_validation_samples": WATCHED_IMAGES,
        "max_train_minutes": plan.denoiser_minutes,
        "output_dir": str(folder / "denoiser"),
    }
    return DenoiserConfig(**DENOISER | training_settings(config, plan) | changes)


def train_once(path: Path, batch_size: int, train: Callable[[], TrainingSummary]) -> dict[str, Any]:
    """Train, or read what a finished training did.

    Args:
        path: `NAME.json` of the training, which is written once it is over.
        batch_size: images a step.
        train: the training.

    Returns:
        Figures, the name before each. Images a second are those of the whole training, so that
        they mean the same where it was killed and went on.
    """
    if not path.is_file():
        with open(path.with_name("training.log"), "a") as log, redirect_stdout(log):
            summary = train()
        figures = {
            "steps": summary.steps,
            "minutes": summary.seconds / 60,
            "train_images_per_second": summary.steps * batch_size / summary.seconds,
            "train_loss": summary.train_loss,
            "held_out_loss": list(summary.validation_losses.values())[-1],
        }
        write_json(path, {f"{path.stem}_{name}": value for name, value in figures.items()})
    return read_json(path)
