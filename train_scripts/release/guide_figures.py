"""Compare guides of a denoiser and guidance scales: write docs/reports/guides.json.

    OMP_NUM_THREADS=1 python train_scripts/release/guide_figures.py MODEL DATA RUNS

MODEL has the denoiser, DATA has its images, RUNS is the folder of the guides' trainings. A finished
training is not repeated. The guides are those of the recipe guide.yaml, with other numbers of steps
and shares of dropped labels. The real images are those of `average_figures.py`.
"""

import sys
from pathlib import Path
from typing import Any

from average_figures import NUM_IMAGES, NUM_SEEDS, SEED
from hf_latent.command import parse_config
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.experiments.sweep.pair import RealBaseline, measure_generated
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.models.load import load_denoiser
from hf_latent.models.presets import FLOW_INFERENCE_STEPS
from hf_latent.output import read_json, write_json
from hf_latent.pipeline.denoise import Guidance
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from variant_figures import FASHION_MNIST

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "reports" / "guides.json"
RECIPE = ROOT / "train_scripts" / "recipes" / "fashion_mnist-32" / "guide.yaml"
GUIDES = ((1000, 0.1), (1000, 0.95), (2000, 0.95), (4000, 0.95))  # steps, label_dropout
GUIDANCES = [Guidance(scale, (0.0, 0.8)) for scale in (1.5, 2.0)]


def train_guide(steps: int, label_dropout: float, data: str, runs: Path) -> str:
    """Train a guide of the recipe with other settings, unless it is trained; return its run."""
    run = runs / f"{steps}-steps-{label_dropout}"
    if not (run / "model").is_dir():
        changed = {"data": data, "max_train_steps": steps, "label_dropout": label_dropout}
        changed |= {"output_dir": str(run), "overwrite_output_dir": "true"}
        flags = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
        train_denoiser(parse_config(DenoiserConfig, ["--config", str(RECIPE), *flags]))
    return str(run)


def measure(model: str, guide: str, guidance: Guidance, real: RealBaseline) -> dict[str, Any]:
    """Draw images with a guide, and compare them with real ones; return the figures of its row."""
    pipeline = load_pipeline(model, guide=guide)
    trained = read_json(Path(guide) / "model" / "training.json")
    figures = measure_generated(
        *(pipeline, real, SEED, NUM_SEEDS, FLOW_INFERENCE_STEPS), guidance=guidance
    )
    del figures["sampling_images_per_second"]  # other programs may run meanwhile
    row = {
        "guide_steps": trained["steps"],
        "guide_label_dropout": trained["label_dropout"],
        "guidance_scale": guidance.scale,
        "guidance_interval": guidance.interval,
        **figures,
    }
    print(row, flush=True)
    return row


def compare(model: str, data: str, runs: Path) -> dict[str, Any]:
    """Train the guides and measure each at each scale; return the report."""
    guides = [train_guide(*settings, data, runs) for settings in GUIDES]
    extractor = load_feature_extractor("efficientnet-lite0")
    splits = open_images(ImagesConfig(data=data, **FASHION_MNIST))
    real, real_fd = measure_real_images(splits, NUM_IMAGES, SEED, extractor)
    return {
        "model": shown_name(model),
        "data": shown_name(data),
        "num_images": NUM_IMAGES,
        "seed": SEED,
        "num_inference_steps": FLOW_INFERENCE_STEPS,
        "guide_parameters": load_denoiser(guides[0])[0].num_parameters(),
        "real_fd": real_fd,
        "preprocessing": extractor.preprocessing,
        "guides": [measure(model, guide, x, real) for guide in guides for x in GUIDANCES],
        **machine_figures(),
    }


if __name__ == "__main__":
    write_json(REPORT, compare(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
