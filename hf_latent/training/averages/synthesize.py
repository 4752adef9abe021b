"""Make a model of another average of the denoiser's weights, after the training."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from hf_latent.command import Settings
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.render import write_model_card
from hf_latent.hub.card.weights import read_saved_weights
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.lock import locks_output
from hf_latent.output import check_output_dir, read_json, replaced_whole, write_json
from hf_latent.training.averages.power_function import gamma_from_sigma_rel
from hf_latent.training.averages.snapshots import FOLDER, list_snapshots
from hf_latent.training.averages.synthesis import plan_synthesis, sum_snapshots

# Figures in training.json of the weights in RUN/model, which this average does not have.
FIGURES_OF_THE_WEIGHTS = {
    *("held_out_loss", "held_out_images", "ema_decay"),
    *("distance_to_teacher", "held_out_trajectories"),
}
# Figures of the whole training, which are wrong if this average ends earlier.
FIGURES_OF_ALL_STEPS = {"train_loss", "images_seen", "seconds"}


@dataclass(frozen=True, kw_only=True)
class SynthesizeEmaConfig(Settings):
    """Make a model of another average of a denoiser's weights, after its training.

    The snapshots that the training saved (--ema_snapshot_steps) are summed to an average of any
    length (Karras et al. 2024).

    Attributes:
        run: The training's folder.
        sigma_rel: Length of the average: the standard deviation of its profile, as a share of the
            steps up to its end. A longer average is smoother. 16 snapshots of each saved average
            suffice for 0.03 to 0.25.
        step: The average's last step. By default that of the last snapshot.
        output_dir: The new model's folder.
        overwrite_output_dir: Replace an earlier model in output_dir; other files in it stay.
    """

    run: str
    sigma_rel: float
    step: PositiveInt | None = None
    output_dir: str
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super().__post_init__()
        gamma_from_sigma_rel(self.sigma_rel)


@locks_output
def synthesize_ema(config: SynthesizeEmaConfig) -> Path:
    """Sum snapshots to an average, save it as a model and return the model's folder.

    Raises:
        UserError: if the run's snapshots or model are missing, do not fit together or cannot give
            this average, or if the folder cannot be written.
    """
    run = Path(config.run)
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    snapshots = list_snapshots(run)
    if not snapshots:
        raise UserError(f"--run {run} has no {FOLDER}: train with --ema_snapshot_steps")
    last = snapshots[-1].step
    step = config.step or last
    if step > last:
        raise UserError(f"--step {step} is after the last snapshot: choose {last} or less")
    report = _read_report(run / "model")
    synthesis = plan_synthesis(snapshots, config.sigma_rel, step)
    for snapshot in synthesis.snapshots:
        if snapshot.training != report.get("ema_training"):
            raise UserError(
                f"{snapshot.path} is of another training than {run / 'model'}: finish the "
                "snapshot's training with --resume_from_checkpoint latest, or remove its snapshots"
            )

    pipeline = load_pipeline(str(run / "model"))
    parameters = dict(pipeline.unet.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, weight in sum_snapshots(synthesis, shapes).items():
            parameters[name].copy_(weight)
    if report.get("save_dtype") == "float16":
        pipeline.unet.half()
        if pipeline.guide_unet is not None:
            pipeline.guide_unet.half()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(output_dir, written=MODEL_FILES) as temporary:
        pipeline.save_pretrained(temporary)
        dropped = set(FIGURES_OF_THE_WEIGHTS)
        if step != report.get("steps"):
            dropped |= FIGURES_OF_ALL_STEPS
        figures = {
            "steps": step,
            "unet_weights_sha256": read_saved_weights(temporary / "unet").sha256,
            "ema_sigma_rel": config.sigma_rel,
            "ema_relative_residual": synthesis.relative_residual,
        }
        kept = {key: value for key, value in report.items() if key not in dropped}
        write_json(temporary / "training.json", kept | figures)
        shutil.copyfile(run / "model" / "config.yaml", temporary / "config.yaml")
        write_model_card(temporary)
    print(
        f"average with sigma_rel {config.sigma_rel:g} at step {step}, of "
        f"{len(synthesis.snapshots)} snapshots: {output_dir} (relative residual of its profile "
        f"{synthesis.relative_residual:.2g})"
    )
    return output_dir


def _read_report(model: Path) -> dict[str, Any]:
    """Return the training.json of a run's model."""
    if not (model / "model_index.json").is_file():
        raise UserError(
            f"--run {model.parent} has no model yet: finish its training with "
            "--resume_from_checkpoint latest"
        )
    if not read_model_facts(model).training or not (model / "config.yaml").is_file():
        raise UserError(
            f"{model} lacks the training.json or the config.yaml of these weights: name a --run "
            "that is unchanged since its training"
        )
    return read_json(model / "training.json")
