"""Compare autoencoders by their reconstructions and by the samples of a short denoiser.

python train_scripts/release/compare_models.py --models A=FOLDER B=FOLDER --output_dir OUT
"""

import re
from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import PositiveInt

from autoencoder_figures import measure_autoencoder
from hf_latent.command import run_command
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.sampling import choose_sampling, load_pipeline, sample_images
from hf_latent.evaluation.machine import machine_figures
from hf_latent.evaluation.pictures import image_grid, save_picture
from hf_latent.experiments.sweep.pair import measure_generated
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.models.presets import measure_compression
from hf_latent.output import check_output_dir, write_json

SHOWN, BATCH_SIZE = 32, 100


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ImagesConfig):
    """Compare models of equal training time, each with its own autoencoder.

    Attributes:
        models: NAME=FOLDER of each pipeline; NAME.png shows its samples.
        output_dir: The folder for comparison.json and the pictures of samples.
        overwrite_output_dir: Accept a folder with files in it.
        num_images: Number of generated images a model and seed, and of real images to compare with.
        num_seeds: How many times to generate the images.
        num_inference_steps: The sampler's steps, without guidance. By default each model's own, or
            20.
    """

    models: list[str]
    output_dir: str
    overwrite_output_dir: bool = False
    num_images: PositiveInt = 500
    num_seeds: PositiveInt = 2
    num_inference_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for model in self.models:
            if not re.fullmatch(r"[\w-]+=.+", model):
                raise UserError(f"--models {model} must be NAME=FOLDER, the name in plain letters")


def compare_models(config: CompareConfig) -> dict[str, Any]:
    """Measure reconstruction and generation of each model, and write comparison.json.

    Args:
        config: the models and their images.

    Returns:
        The content of comparison.json.

    Raises:
        UserError: if a model cannot be loaded, or there are too few images.
    """
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    splits = open_images(config)
    count = config.num_images
    if len(splits.train) < 2 * count:
        raise UserError(f"--num_images {count} needs {2 * count} training images to compare with")
    extractor = load_feature_extractor("efficientnet-lite0")
    real, real_fd = measure_real_images(splits, count, config.seed, extractor)
    labels = real.images.subset(real.images.reference).labels
    shown_labels = None if labels is None else labels[:SHOWN].tolist()
    rows = []
    output_dir.mkdir(parents=True, exist_ok=True)
    for model in config.models:
        name, _, folder = model.partition("=")
        pipeline = load_pipeline(folder)
        steps, _ = choose_sampling(pipeline, config.num_inference_steps, 1.0)
        compression = measure_compression(pipeline.vae, splits.image_shape)
        samples = sample_images(
            pipeline,
            None if pipeline.num_classes is None else shown_labels,
            min(SHOWN, count),
            config.seed,
            BATCH_SIZE,
            1.0,
            steps,
        )
        save_picture(output_dir / f"{name}.png", image_grid(samples, SHOWN // 4))
        rows.append(
            {
                "name": name,
                "latent_shape": compression.latent_shape,
                "compression_ratio": compression.ratio,
                "num_inference_steps": steps,
                **measure_autoencoder(pipeline.vae, splits.validation),
                **measure_generated(pipeline, real, config.seed, config.num_seeds, steps),
            }
        )
    report = {
        "models": rows,
        "real_against_real_fd": real_fd,
        "num_images": count,
        "validation_fingerprint": splits.validation_fingerprint,
        **machine_figures(),
    }
    write_json(output_dir / "comparison.json", report)
    for row in rows:
        print(
            f"{row['name']}: {row['test_psnr_db']:.2f} dB, generated FD {row['generated_fd']:.2f}"
        )
    return report


if __name__ == "__main__":
    run_command(CompareConfig, compare_models)
