"""Compare averages of a denoiser's weights, guidance and guides: write docs/reports/averages.json.

    python train_scripts/release/average_figures.py RUN DATA MODELS

RUN is a training with --ema_snapshot_steps, DATA has its images, MODELS is a folder for the models
made of its snapshots. The real images are another draw of training images than that of a released
model's card, so its figures are not those that it was chosen by.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.experiments.sweep.pair import RealBaseline, measure_generated
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.models.presets import FLOW_INFERENCE_STEPS
from hf_latent.output import read_json, write_json
from hf_latent.pipeline.denoise import Guidance
from hf_latent.training.averages.snapshots import list_snapshots
from hf_latent.training.averages.synthesize import SynthesizeEmaConfig, synthesize_ema
from variant_figures import FASHION_MNIST, GUIDED

REPORT = Path(__file__).parents[2] / "docs" / "reports" / "averages.json"
NUM_IMAGES, NUM_SEEDS, SEED = 2000, 2, 1
LENGTHS = (None, 0.05, 0.1, 0.15)
# Of the best average. Guidance at the noisiest levels costs variety (Kynkäänniemi et al. 2024).
GUIDANCES = [
    *(Guidance(scale, (0.0, 0.8)) for scale in (1.5, 3.0)),
    *(Guidance(2.0, (0.0, highest)) for highest in (0.6, 1.0)),
]
# The guide is the same average at an earlier step (Karras et al. 2024, "Guiding a diffusion model
# with a bad version of itself").
GUIDE_SHARES = (1 / 16, 1 / 8, 1 / 4)
GUIDED_BY = [Guidance(scale, (0.0, 0.8)) for scale in (2.0, 2.5, 3.0)]


@dataclass(frozen=True)
class Choice:
    """A model, and how it is guided.

    Attributes:
        length: sigma_rel of its average; None: the average that the training saved.
        guidance: None: no guidance.
        guide_share: the guide's step, as a share of the training's; None: guided by the null label.
    """

    length: float | None
    guidance: Guidance | None
    guide_share: float | None = None


def make_average(run: Path, models: Path, length: float | None, step: int) -> str:
    """Return the folder of a run's model whose weights are an average up to a step.

    Args:
        models: the folder for models that are made.
        length: sigma_rel; None: the model that the training saved.
    """
    if length is None:
        return str(run / "model")
    made = models / f"{length:g}-step-{step}"
    if not made.is_dir():
        config = SynthesizeEmaConfig(
            run=str(run), sigma_rel=length, step=step, output_dir=str(made)
        )
        synthesize_ema(config)
    return str(made)


def measure(choice: Choice, run: Path, models: Path, real: RealBaseline) -> dict[str, Any]:
    """Draw images by a choice and compare them with real ones; return the figures of its row."""
    steps = read_json(run / "model" / "training.json")["steps"]
    guide, row = None, dict[str, Any](sigma_rel=choice.length)
    if choice.guide_share is not None:
        # Between two snapshots of an early step an average cannot be made well enough.
        wanted = steps * choice.guide_share
        step = min((x.step for x in list_snapshots(run)), key=lambda step: abs(step - wanted))
        # Snapshots hold no average of the usual kind, so a guide of the saved model is of this one.
        guide = make_average(run, models, choice.length or 0.1, step)
        row |= {"guide_step": step}
    if choice.guidance is not None:
        row |= {"guidance_scale": choice.guidance.scale}
        row |= {"guidance_interval": choice.guidance.interval}
    pipeline = load_pipeline(make_average(run, models, choice.length, steps), guide=guide)
    if guide is None:
        pipeline.guide_unet = None  # of the training
    row |= measure_generated(
        *(pipeline, real, SEED, NUM_SEEDS, FLOW_INFERENCE_STEPS), guidance=choice.guidance
    )
    del row["sampling_images_per_second"]  # other programs may run meanwhile
    print(row, flush=True)
    return row


def compare(run: Path, data: str, models: Path) -> dict[str, Any]:
    """Measure the averages, then guidance and guides of the best one; return the report."""
    images = ImagesConfig(data=data, **FASHION_MNIST)
    extractor = load_feature_extractor("efficientnet-lite0")
    real, real_fd = measure_real_images(open_images(images), NUM_IMAGES, SEED, extractor)
    choices = [Choice(length, guidance) for length in LENGTHS for guidance in (None, GUIDED)]
    rows = [measure(choice, run, models, real) for choice in choices]
    best = min(rows, key=lambda row: row["generated_fd"])["sigma_rel"]
    others = [Choice(best, guidance) for guidance in GUIDANCES]
    others += [Choice(best, guidance, share) for share in GUIDE_SHARES for guidance in GUIDED_BY]
    return {
        "data": shown_name(data),
        "steps": read_json(run / "model" / "training.json")["steps"],
        "num_images": NUM_IMAGES,
        "seed": SEED,
        "num_inference_steps": FLOW_INFERENCE_STEPS,
        "real_fd": real_fd,
        "preprocessing": extractor.preprocessing,
        "averages": rows,
        "others": [measure(choice, run, models, real) for choice in others],
        **machine_figures(),
    }


if __name__ == "__main__":
    write_json(REPORT, compare(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
