"""Compare diffusion on latents with diffusion on pixels after equal minutes of training.

python train_scripts/compare_pixels.py --data DATA --minutes 5 --output_dir OUT
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from tqdm import tqdm

from hf_latent.command import Share, run_command
from hf_latent.data.images.config import ImagesConfig, select_image_settings
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.generated import labelled_real_images
from hf_latent.evaluation.images.sampling import choose_sampling, count_evaluations
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.classifier import (
    LabelledImages,
    choose_epochs,
    measure_accuracy,
    train_classifier,
)
from hf_latent.evaluation.measures.floor import measure_floor
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.pictures import labelled_rows, save_picture
from hf_latent.experiments.quickstart import AUTOENCODER, DENOISER
from hf_latent.experiments.sweep.pair import RealBaseline
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.output import read_json, write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from train_pixels import PixelsConfig, train_pixels

Part = Literal["latents", "pixels", "measure"]
# Few enough that activations of 64x64 pixels take less than 32 MB: glibc asks the kernel for larger
# blocks anew each time, which costs a pixel denoiser half as much again on a CPU.
BATCH_SIZE = 25
VALIDATION_IMAGES, SHOWN_CLASSES, SHOWN_COLUMNS = 500, 10, 8
# Quickstart's settings, made for short trainings, with the squared error: a higher PSNR.
VAE: dict[str, Any] = AUTOENCODER | {"reconstruction_loss": "l2", "kl_weight": 3e-4}
MEASURED_WITH = ("num_images", "num_inference_steps", "guidance_scale", "seed")
LAST = {"validation_steps": 10**9}  # validate only at the end


@dataclass(frozen=True, kw_only=True)
class ComparePixelsConfig(ImagesConfig):
    """Train both for equal minutes, draw images of both, and write comparison.json.

    A part that a folder has already is not made again, so the parts may run one by one.

    Attributes:
        output_dir: The folder for latents/, pixels/, comparison.json and a grid of each.
        minutes: Minutes of both trainings on latents together, encoding included. The training on
            pixels gets as many as they really took.
        clock: What a minute is: of the wall, or of the processor's time in this process, which
            other programs change less. For that, use one thread and no GPU.
        parts: What to do: latents, pixels, measure.
        autoencoder_share: Share of the minutes that trains the autoencoder.
        vae_channels: Channels of each level of the autoencoder.
        latent_channels: Channels of the latents.
        pixel_channels: Channels of each level of the denoiser of pixels.
        num_images: Number of generated images.
        num_inference_steps: Steps of UniPC.
        guidance_scale: Of both.
    """

    output_dir: str
    minutes: PositiveFloat
    clock: Literal["wall", "cpu"] = "wall"
    parts: list[Part] = ("latents", "pixels", "measure")  # type: ignore[assignment]
    autoencoder_share: Share = 0.25
    vae_channels: list[PositiveInt] = (8, 16, 32)  # type: ignore[assignment]
    latent_channels: PositiveInt = 4
    pixel_channels: tuple[PositiveInt, ...] = (32, 64, 96, 96)
    num_images: PositiveInt = 2000
    num_inference_steps: PositiveInt = 10
    guidance_scale: NonNegativeFloat = 2.0


def train_latents(
    config: ComparePixelsConfig, splits: ImageSplits, folder: Path, now: Callable[[], float]
) -> None:
    """Train an autoencoder and a denoiser in the minutes; write training.json last."""
    images = select_image_settings(config) | {"max_validation_samples": VALIDATION_IMAGES}
    shared = {
        **images,
        "overwrite_output_dir": True,
        "checkpointing_steps": None,
    }
    start = now()
    autoencoder = train_autoencoder(
        AutoencoderConfig(
            **shared | VAE | LAST,
            block_out_channels=list(config.vae_channels),
            latent_channels=config.latent_channels,
            max_train_minutes=config.minutes * config.autoencoder_share,
            output_dir=str(folder / "autoencoder"),
        ),
        splits,
        now=now,
    )
    cache = folder / "denoiser" / "latents"
    encode = EncodeConfig(**images, vae=str(autoencoder.model_dir), output_dir=str(cache))
    encode_latents(encode, splits, replace_other=True)
    minutes = config.minutes - (now() - start) / 60
    denoiser = train_denoiser(
        DenoiserConfig(
            **shared | DENOISER | LAST,
            vae=str(autoencoder.model_dir),
            max_train_minutes=minutes,
            output_dir=str(folder / "denoiser"),
        ),
        splits,
        now=now,
    )
    pipeline = load_latents(folder)
    figures = {
        "minutes": (now() - start) / 60,
        "autoencoder_minutes": autoencoder.seconds / 60,
        "denoiser_minutes": denoiser.seconds / 60,
        "autoencoder_images": autoencoder.steps * VAE["train_batch_size"],
        "steps": denoiser.steps,
        "images": denoiser.steps * int(DENOISER["train_batch_size"]),
        "parameters": pipeline.unet.num_parameters(),
        "autoencoder_parameters": pipeline.vae.num_parameters(),
    }
    write_json(folder / "training.json", figures)


@dataclass(frozen=True)
class Yardstick:
    """What images are measured by.

    Attributes:
        real: real images.
        judge: a classifier of them.
        figures: of the real images.
    """

    real: RealBaseline
    judge: torch.nn.Module
    figures: dict[str, float]


def load_latents(folder: Path) -> LatentDiffusionPipeline:
    """Load the pipeline that was trained on latents."""
    return LatentDiffusionPipeline.from_pretrained(folder / "denoiser" / "model")


def load_pixels(folder: Path) -> LatentDiffusionPipeline:
    """Load the denoiser of pixels into a pipeline that only denoises."""
    unet = UNet2DModel.from_pretrained(folder / "unet")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    return LatentDiffusionPipeline(None, unet, scheduler)


def generate(
    pipeline: LatentDiffusionPipeline, labels: torch.Tensor, config: ComparePixelsConfig
) -> torch.Tensor:
    """Return images `(N, C, H, W)` uint8 of labels `(N,)`; image i has the seed `seed + i`."""
    pipeline.use_sampler("unipc")
    pipeline.set_progress_bar_config(disable=True)
    batches = []
    for rows in torch.arange(len(labels)).split(BATCH_SIZE):
        (images,) = pipeline(
            class_labels=labels[rows].tolist(),
            generator=[torch.Generator().manual_seed(config.seed + int(i)) for i in rows],
            guidance_scale=config.guidance_scale,
            num_inference_steps=config.num_inference_steps,
            output_type="latent" if pipeline.vae is None else "pt",
            return_dict=False,
        )
        batches.append(to_uint8(images if pipeline.vae is None else images * 2 - 1))
    return torch.cat(batches)


def open_yardstick(config: ComparePixelsConfig, splits: ImageSplits) -> Yardstick:
    """Measure the real images, and train the judge on them."""
    extractor = load_feature_extractor("efficientnet-lite0")
    real, real_fd = measure_real_images(splits, config.num_images, config.seed, extractor)
    judged = labelled_real_images(splits.train)
    assert splits.num_classes  # checked at the start
    epochs = choose_epochs(judged.length)
    judge = train_classifier(judged, splits.num_classes, config.seed, epochs)
    accuracy = measure_accuracy(judge, labelled_real_images(splits.validation))
    return Yardstick(real, judge, {"real_fd": real_fd, "judge_real_accuracy": accuracy})


def measure_way(
    name: str,
    pipeline: LatentDiffusionPipeline,
    config: ComparePixelsConfig,
    splits: ImageSplits,
    yardstick: Yardstick,
) -> dict[str, Any]:
    """Return the figures of a pipeline's images, and save a grid of them."""
    real = yardstick.real
    labels = real.images.subset(real.images.reference).labels
    assert labels is not None and splits.num_classes and splits.id2label  # checked at the start
    start = time.process_time()
    images = generate(pipeline, labels, config)
    seconds = time.process_time() - start
    steps, guidance = choose_sampling(pipeline, config.num_inference_steps, config.guidance_scale)
    judged = LabelledImages.from_tensors(images / 127.5 - 1, labels)
    figures = {
        "fd": frechet_distance(map(real.extractor, images.split(BATCH_SIZE)), real.reference),
        "label_agreement": measure_accuracy(yardstick.judge, judged),
        "cpu_seconds_per_image": seconds / len(images),
        "evaluations": count_evaluations(pipeline, steps, guidance),
    }
    if pipeline.vae is not None:
        others, bar = real.images.subset(real.images.other), tqdm(disable=True)
        figures["floor_fd"] = measure_floor(
            pipeline.vae, others, real.reference, real.extractor, BATCH_SIZE, config.seed, bar
        )
    shown = list(range(min(SHOWN_CLASSES, splits.num_classes)))
    rows = [torch.where(labels == x)[0][:SHOWN_COLUMNS] for x in shown]
    grid = images[torch.stack(rows, dim=1).flatten()] / 255
    path = Path(config.output_dir) / f"{name}.png"
    save_picture(path, labelled_rows(grid, shown, splits.id2label))
    return yardstick.figures | {f"{name}_{key}": value for key, value in figures.items()}


def measure(config: ComparePixelsConfig, splits: ImageSplits) -> None:
    """Measure what is trained; once both ways are, write comparison.json.

    A way's measured.json names the settings and the training that it is of. It is used again only
    if these are the same.
    """
    output_dir, load = Path(config.output_dir), {"latents": load_latents, "pixels": load_pixels}
    settings = {key: getattr(config, key) for key in MEASURED_WITH}
    yardstick, measured = None, list[dict[str, Any]]()
    for name, load_pipeline in load.items():
        folder = output_dir / name
        if not (folder / "training.json").exists():
            continue
        training = read_json(folder / "training.json")
        given = settings | {f"{name}_{key}": value for key, value in training.items()}
        path = folder / "measured.json"
        if not path.exists() or not given.items() <= read_json(path).items():
            yardstick = yardstick or open_yardstick(config, splits)
            figures = measure_way(name, load_pipeline(folder), config, splits, yardstick)
            write_json(path, given | figures)
        measured.append(read_json(path))
    if len(measured) == len(load):
        kept = {k: v for k, v in asdict(config).items() if k not in ("output_dir", "parts")}
        kept["data"] = shown_name(config.data)
        report = kept | measured[0] | measured[1] | machine_figures()
        write_json(output_dir / "comparison.json", report)


def compare_pixels(config: ComparePixelsConfig, now: Callable[[], float] | None = None) -> None:
    """Make the parts that are asked for and not there yet.

    Args:
        config: the settings.
        now: the clock, in seconds; None: that of the settings.

    Raises:
        UserError: if the images have no classes, or a setting or a folder is not valid.
    """
    now = now or {"wall": time.perf_counter, "cpu": time.process_time}[config.clock]
    output_dir = Path(config.output_dir)
    splits = open_images(ImagesConfig(**select_image_settings(config)))
    if splits.num_classes is None:
        raise UserError(
            f"{config.data} has no classes: the comparison needs a folder for each class"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    latents, pixels = output_dir / "latents", output_dir / "pixels"
    if "latents" in config.parts and not (latents / "training.json").exists():
        train_latents(config, splits, latents, now)
    if "pixels" in config.parts and not (pixels / "training.json").exists():
        train_pixels(
            PixelsConfig(
                **select_image_settings(config),
                block_out_channels=config.pixel_channels,
                max_train_minutes=read_json(latents / "training.json")["minutes"],
                output_dir=str(pixels),
                overwrite_output_dir=True,
            ),
            now,
        )
    if "measure" in config.parts:
        measure(config, splits)


if __name__ == "__main__":
    run_command(ComparePixelsConfig, compare_pixels)
