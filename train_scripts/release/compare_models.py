"""Autoencoders side by side: what each keeps, and what a short denoiser makes of its latents.

python train_scripts/release/compare_models.py --models A=FOLDER B=FOLDER --output_dir OUT
"""

import re
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from autoencoder_figures import measure_autoencoder
from hf_latent.command import run_command
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.sampling import count_evaluations, load_pipeline, sample_images
from hf_latent.evaluation.machine import machine_figures
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.pictures import image_grid, save_picture
from hf_latent.models.presets import measure_compression
from hf_latent.output import check_output_dir, write_json

SHOWN, BATCH_SIZE = 32, 100


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ImagesConfig):
    """Compare models of equal training time, each with an autoencoder of its own.

    Attributes:
        models: NAME=FOLDER of each pipeline; the picture of its samples is NAME.png.
        output_dir: for comparison.json and a picture of samples a model.
        overwrite_output_dir: accept a folder with files in it.
        num_images: generated images a model and seed, and real ones to compare them with.
        num_seeds: how often they are generated, each time from other noise.
        num_inference_steps: the scheduler's steps; guidance is off.
    """

    models: list[str]
    output_dir: str
    overwrite_output_dir: bool = False
    num_images: PositiveInt = 500
    num_seeds: PositiveInt = 2
    num_inference_steps: PositiveInt = 20

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
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
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(config.seed))
    extractor = load_feature_extractor("efficientnet-lite0")

    def vectors(images: torch.Tensor) -> list[torch.Tensor]:
        return [extractor(x) for x in images.split(BATCH_SIZE)]

    real, other_real = (
        vectors(splits.train.read_uint8(rows)) for rows in order[: 2 * count].split(count)
    )
    labels = None
    if splits.num_classes is not None:  # as often as among the training images
        labels = [int(splits.train[i]["class_labels"]) for i in order[:count].tolist()]
    rows = []
    output_dir.mkdir(parents=True, exist_ok=True)
    for model in config.models:
        name, _, folder = model.partition("=")
        pipeline = load_pipeline(folder)
        evaluations = count_evaluations(pipeline, config.num_inference_steps)
        compression = measure_compression(pipeline.vae, splits.image_shape)
        distances = []
        for turn in range(config.num_seeds):
            samples = sample_images(
                pipeline,
                None if pipeline.num_classes is None else labels,
                count,
                config.seed + turn * count,
                BATCH_SIZE,
                1.0,
                config.num_inference_steps,
            )
            distances.append(frechet_distance(vectors(to_uint8(samples * 2 - 1)), real))
        save_picture(output_dir / f"{name}.png", image_grid(samples[:SHOWN], SHOWN // 4))
        rows.append(
            {
                "name": name,
                "latent_shape": compression.latent_shape,
                "compression_ratio": compression.ratio,
                "denoiser_evaluations_per_image": evaluations,
                **measure_autoencoder(pipeline.vae, splits.validation),
                "generated_fd": mean(distances),
                "generated_fd_by_seed": distances,
            }
        )
    report = {
        "models": rows,
        "real_against_real_fd": frechet_distance(other_real, real),
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
