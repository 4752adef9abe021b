"""One pair of a sweep: its autoencoder, its denoiser, and what is measured of both.

    f4-c4/
        autoencoder/  denoiser/          the runs' folders
        autoencoder.json  denoiser.json  what each training did, once it is over
        training.log                     what the trainings had to say
        figures.json                     written last: then the pair is finished

Each file is whole or absent, so that a killed sweep knows what is done.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.images.pixels import to_uint8
from hf_latent.evaluation.feature_extractors import FeatureExtractor
from hf_latent.evaluation.floor import measure_floor, measure_kept
from hf_latent.evaluation.generation import frechet_distance
from hf_latent.evaluation.inspection.arithmetic import describe_rate
from hf_latent.evaluation.inspection.latent_figures import PosteriorRate
from hf_latent.evaluation.reference import RealImages
from hf_latent.evaluation.sampling import count_evaluations, load_pipeline, sample_images
from hf_latent.experiments.sweep.config import Pair, SweepConfig
from hf_latent.experiments.sweep.plan import (
    BATCH_SIZE,
    Plan,
    create_models,
)
from hf_latent.experiments.sweep.training import (
    autoencoder_config,
    denoiser_config,
    train_once,
)
from hf_latent.models.load import Autoencoder
from hf_latent.models.presets import Compression, measure_compression
from hf_latent.output import read_json, write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.run.folder import list_checkpoints, remove_checkpoint


@dataclass(frozen=True)
class RealSide:
    """What every pair is measured against.

    Attributes:
        images: the real images.
        held_out: those of the held-out ones that are reconstructed.
        held_out_vectors: their vectors, in blocks.
        reference: vectors of the reference, in blocks.
        extractor: of these vectors.
    """

    images: RealImages
    held_out: ImageDataset
    held_out_vectors: list[torch.Tensor]
    reference: list[torch.Tensor]
    extractor: FeatureExtractor


@torch.no_grad()
def measure_rate(
    vae: Autoencoder, held_out: ImageDataset, compression: Compression
) -> dict[str, float]:
    """Measure the bits of the posterior, see `PosteriorRate`.

    The KL is an upper bound on what the latent tells of the image (Alemi et al. 2018, section 2;
    Hoffman and Johnson 2016), and the rate the tightest such bound by a normal a channel.
    """
    rate = PosteriorRate(vae)
    for rows in torch.arange(len(held_out)).split(BATCH_SIZE):
        rate.update(vae.encode(held_out.read(rows).to(vae.device)).latent_dist)
    described = describe_rate(rate, compression)
    bits = {f"{name}_per_image": value for name, value in rate.bits_per_image().items()}
    return bits | {x: described[x] for x in ("kl_bits_per_pixel", "rate_bits_per_pixel")}


def measure_generated(
    config: SweepConfig,
    pipeline: LatentDiffusionPipeline,
    real: RealSide,
    now: Callable[[], float],
) -> dict[str, Any]:
    """Generate images without guidance, labels as often as in the reference, and compare them."""
    labels = real.images.subset(real.images.reference).labels
    conditional = pipeline.num_classes is not None and labels is not None
    distances, seconds = [], 0.0
    for turn in range(config.num_seeds):
        start = now()
        samples = sample_images(
            pipeline,
            labels.tolist() if conditional and labels is not None else None,
            config.num_images,
            config.seed + turn * config.num_images,
            BATCH_SIZE,
            1.0,
            config.num_inference_steps,
        )
        seconds += now() - start
        blocks = [real.extractor(to_uint8(x * 2 - 1)) for x in samples.split(BATCH_SIZE)]
        distances.append(frechet_distance(blocks, real.reference))
    return {
        "generated_fd": sum(distances) / len(distances),
        "generated_fd_by_seed": distances,
        "generated_fd_spread": max(distances) - min(distances),
        "sampling_images_per_second": config.num_seeds * config.num_images / seconds,
        "denoiser_evaluations_per_image": count_evaluations(pipeline, config.num_inference_steps),
    }


def run_pair(
    config: SweepConfig,
    plan: Plan,
    pair: Pair,
    splits: ImageSplits,
    real: RealSide,
    now: Callable[[], float],
) -> dict[str, Any]:
    """Train and measure a pair, from where an earlier run of it ended.

    Returns:
        The content of its figures.json.

    Raises:
        UserError: if a training cannot go on.
    """
    folder = Path(config.output_dir) / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "figures.json").is_file():
        with torch.device("meta"):
            models = create_models(config, pair, splits.image_shape, splits.num_classes)
        compression = measure_compression(models[0], splits.image_shape)
        first = autoencoder_config(config, plan, pair, folder, compression)
        second = denoiser_config(config, plan, folder)
        trained = train_once(
            folder / "autoencoder.json",
            first.train_batch_size,
            lambda: train_autoencoder(first, splits, now=now),
        ) | train_once(
            folder / "denoiser.json",
            second.train_batch_size,
            lambda: train_denoiser(second, splits, now=now),
        )
        pipeline = load_pipeline(str(folder / "denoiser" / "model"))
        parameters = [sum(x.numel() for x in model.parameters()) for model in models]
        start, bar = now(), tqdm(disable=True)
        figures = {
            "name": pair.name,
            "factor": pair.factor,
            "latent_channels": pair.channels,
            "latent_shape": compression.latent_shape,
            "compression_ratio": compression.ratio,
            "kl_weight_per_latent_value": first.kl_weight,
            "autoencoder_parameters": parameters[0],
            "denoiser_parameters": parameters[1],
            **trained,
            **measure_rate(pipeline.vae, real.held_out, compression),
            **measure_kept(
                pipeline.vae, real.held_out, real.held_out_vectors, real.extractor, BATCH_SIZE, bar
            ),
            "floor_fd": measure_floor(
                pipeline.vae,
                real.images.subset(real.images.other),
                real.reference,
                real.extractor,
                BATCH_SIZE,
                config.seed,
                bar,
            ),
            **measure_generated(config, pipeline, real, now),
            "measuring_minutes": (now() - start) / 60,
        }
        write_json(folder / "figures.json", figures)
    clear_pair(folder)
    return read_json(folder / "figures.json")


def clear_pair(folder: Path) -> None:
    """Remove what a finished pair needs no more: checkpoints and encoded images."""
    for name in ("autoencoder", "denoiser"):
        for checkpoint in list_checkpoints(folder / name):
            remove_checkpoint(checkpoint)
    shutil.rmtree(folder / "denoiser" / "latents", ignore_errors=True)
