"""The measurements of the lesson's chapters. Their source stands on the lesson's page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_latent.data.images.open import ImageSplits
from hf_latent.evaluation.images.sampling import load_pipeline, sample_images
from hf_latent.evaluation.inspection.structure import (
    NOISE_STD,
    Agreement,
    NoiseSurvival,
    heavy_blur,
    sobel_edges,
)
from hf_latent.evaluation.measures.classifier import (
    LabelledImages,
    measure_accuracy,
    train_classifier,
)
from hf_latent.evaluation.measures.reconstruction import image_psnr, reconstruct
from hf_latent.evaluation.pictures import image_grid, save_picture
from hf_latent.experiments.benchmark.space import SpaceBenchmarkConfig, measure_point
from hf_latent.experiments.benchmark.space_plot import draw_costs
from hf_latent.experiments.quickstart import AUTOENCODER, DENOISER, IMAGES, read_images_and_labels
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.models.presets import create_autoencoder, create_scheduler, measure_compression
from hf_latent.pipeline.add_noise import add_noise
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.denoise import denoise_latents
from hf_latent.pipeline.encode import encode_images
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig

Figures = dict[str, Any]
SHOWN_IMAGES, SHOWN_STEPS, GENERATED_IMAGES = 6, (0, 4, 8, 12, 16, 20), 200
SPACES = ("pixels", "latents")
NOISE_SHARES = (0.0, 0.25, 0.5, 1.0)
# Widths of autoencoders that halve the size two, three and four times.
WIDTHS = {4: [8, 16, 32], 8: [8, 16, 32, 32], 16: [8, 16, 32, 32, 32]}
WITHOUT_CHECKPOINTS = {"checkpointing_steps": None, "overwrite_output_dir": True}


@dataclass(frozen=True)
class Lesson:
    """What the chapters measure with.

    Attributes:
        output_dir: for pictures and trainings.
        vae: the autoencoder, frozen.
        vae_name: as it was given.
        splits: the images.
        images: held-out images, `(B, C, H, W)` float in [-1, 1].
        resolutions: sizes of images whose steps are timed, ascending.
        train_minutes: of all trainings together.
        seed: of everything random.
    """

    output_dir: Path
    vae: Autoencoder
    vae_name: str
    splits: ImageSplits
    images: torch.Tensor
    resolutions: Sequence[int]
    train_minutes: float
    seed: int

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Draw standard normal noise of a tensor's shape, always the same."""
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(self.seed))

    def psnr_db(self, decoded: torch.Tensor) -> float:
        """Return the mean PSNR of decoded images, `(B, C, H, W)` near [-1, 1]."""
        return image_psnr(decoded / 2 + 0.5, self.images / 2 + 0.5).mean().item()

    def edge_agreement(self, decoded: torch.Tensor) -> float:
        """Return the share of the variance of the images' edges that decoded images keep."""
        edges = Agreement()
        edges.update(sobel_edges(self.images), sobel_edges(decoded))
        return edges.compute()

    def show(self, name: str, columns: dict[str, torch.Tensor]) -> None:
        """Save a picture of a few images.

        Args:
            name: of the file, without its suffix.
            columns: images `(B, C, H, W)` near [-1, 1] of each column, by its heading.
        """
        rows = torch.stack([x[:SHOWN_IMAGES].float().cpu() for x in columns.values()], dim=1)
        rows = rows.flatten(0, 1) / 2 + 0.5
        picture = image_grid(rows, len(columns), column_labels=list(columns), group=1)
        save_picture(self.output_dir / f"{name}.png", picture)


@torch.no_grad()
def count_values(lesson: Lesson) -> Figures:
    """Count values by encoding. Tensors on the device "meta" have shapes and no values."""
    with torch.device("meta"):
        photograph = torch.empty(1, 3, 512, 512)
        vae = create_autoencoder("ldm-f8", image_channels=3, sample_size=512)
        photograph_latents = encode_images(vae, photograph, sample_posterior=False)
    own = measure_compression(lesson.vae, lesson.splits.image_shape)
    return {
        "photograph_values": photograph.numel(),
        "photograph_latent_values": photograph_latents.numel(),
        "photograph_compression_ratio": photograph.numel() / photograph_latents.numel(),
        "image_values": own.image_values,
        "latent_values": own.latent_values,
        "compression_ratio": own.ratio,
    }


def measure_kept(lesson: Lesson) -> Figures:
    """Encode and decode images, once as they are and once with noise on their pixels."""
    images = lesson.images
    noisy = images + 2 * NOISE_STD * lesson.noise(images)
    decoded, noisy_decoded = reconstruct(lesson.vae, images), reconstruct(lesson.vae, noisy)
    layout, noise = Agreement(), NoiseSurvival()
    layout.update(heavy_blur(images), heavy_blur(decoded))
    noise.update(noisy - images, noisy_decoded - decoded)
    lesson.show(
        "kept",
        {
            "image": images,
            "decoded": decoded,
            "noisy": noisy,
            "from noisy": noisy_decoded,
            "noise": noisy - images,
            "what is left": noisy_decoded - decoded,
        },
    )
    return {
        "psnr_db": lesson.psnr_db(decoded),
        "edge_agreement": lesson.edge_agreement(decoded),
        "layout_agreement": layout.compute(),
        "noise_survival": noise.compute()["noise_survival"],
    }


def time_steps(lesson: Lesson) -> Figures:
    """Time the same denoiser on pixels and on latents, in turn, and count its activations."""
    config = SpaceBenchmarkConfig(rounds=3, batch_size=2, max_step_seconds=1e9)  # never skip one
    denoiser = "attention at the lowest level"
    points = [measure_point(denoiser, size, {}, config) for size in lesson.resolutions]
    draw_costs(points, lesson.output_dir / "cost.png")
    rows = []
    for point in points:
        pixels, latents = (point[f"{x}_training_step_activations_mb"] for x in SPACES)
        rows.append(
            {
                "resolution": point["resolution"],
                **{f"{x}_step_seconds": median(point[f"{x}_step_seconds"]) for x in SPACES},
                "step_ratio": point["step_ratio_median"],
                "training_step_ratio": point["training_step_ratio_median"],
                "operations_ratio": point["step_operations_ratio"],
                "pixels_activations_mb": pixels,
                "latents_activations_mb": latents,
                "activations_ratio": pixels / latents,
            }
        )
    return {
        "costs": rows,
        "step_ratio": rows[-1]["step_ratio"],
        "activations_ratio": rows[-1]["activations_ratio"],
        "step_ratio_growth": rows[-1]["step_ratio"] / rows[0]["step_ratio"],
    }


@torch.no_grad()
def measure_noise(lesson: Lesson) -> Figures:
    """Add noise to latents, and decode noise."""
    generator = torch.Generator().manual_seed(lesson.seed)
    latents = encode_images(lesson.vae, lesson.images, generator)
    noise = torch.randn(latents.shape, generator=generator)
    pixel_noise = torch.randn(lesson.images.shape, generator=generator)
    scheduler, timesteps = create_scheduler("flow"), torch.full((len(latents),), 500.0)
    half_noise = add_noise(scheduler, latents, noise, timesteps).noisy_latents
    lesson.show(
        "noise",
        {
            f"{space} {share:.0%}": draw(share)
            for space, draw in (
                ("pixels", lambda x: (1 - x) * lesson.images + x * pixel_noise),
                ("latents", lambda x: decode_latents(lesson.vae, (1 - x) * latents + x * noise)),
            )
            for share in NOISE_SHARES
        },
    )
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return {
        "latent_mean_largest": mean.abs().max().item(),
        "latent_std_error_largest": (std - 1).abs().max().item(),
        "half_noise_variance": half_noise.var().item(),
        "decoded_noise_correlation": correlate_neighbours(decode_latents(lesson.vae, noise)),
        "pixel_noise_correlation": abs(correlate_neighbours(pixel_noise)),
    }


def correlate_neighbours(images: torch.Tensor) -> float:
    """Return the correlation of horizontally neighbouring values of images `(B, C, H, W)`."""
    pairs = torch.stack([images[..., :-1].flatten(), images[..., 1:].flatten()])
    return torch.corrcoef(pairs)[0, 1].item()


def train_autoencoders(lesson: Lesson) -> Figures:
    """Train three autoencoders for equal minutes, which compress more and more."""
    rows, columns = [], {"image": lesson.images}
    for f, widths in WIDTHS.items():
        config = AutoencoderConfig(
            **IMAGES | AUTOENCODER | WITHOUT_CHECKPOINTS,
            block_out_channels=widths,
            seed=lesson.seed,
            max_train_minutes=lesson.train_minutes / 6,
            output_dir=str(lesson.output_dir / f"autoencoder-f{f}"),
        )
        summary = train_autoencoder(config, lesson.splits)
        vae = load_autoencoder(str(summary.model_dir))
        values = measure_compression(vae, lesson.splits.image_shape).latent_values
        columns[f"{values} values"] = decoded = reconstruct(vae, lesson.images)
        rows.append(
            {
                "factor": f,
                "latent_values": values,
                "steps": summary.steps,
                "psnr_db": lesson.psnr_db(decoded),
                "edge_agreement": lesson.edge_agreement(decoded),
            }
        )
    columns["own"] = decoded = reconstruct(lesson.vae, lesson.images)
    lesson.show("quality", columns)
    return {
        "autoencoders": rows,
        "over_compression_db": rows[0]["psnr_db"] - rows[-1]["psnr_db"],
        "over_compressed_edge_agreement": rows[-1]["edge_agreement"],
        "longer_training_db": lesson.psnr_db(decoded) - rows[0]["psnr_db"],
    }


def train_on_frozen(lesson: Lesson) -> Figures:
    """Train a denoiser in the latent space of the autoencoder, whose weights are hashed."""
    config = DenoiserConfig(
        **IMAGES | DENOISER | WITHOUT_CHECKPOINTS,
        vae=lesson.vae_name,
        seed=lesson.seed,
        max_train_minutes=lesson.train_minutes / 2,
        output_dir=str(lesson.output_dir / "denoiser"),
    )
    summary = train_denoiser(config, lesson.splits)
    return {
        "denoiser_steps": summary.steps,
        "vae_hash_before": summary.vae_hash_before,
        "vae_hash_after": summary.vae_hash_after,
        "vae_is_unchanged": summary.vae_hash_before == summary.vae_hash_after,
    }


@torch.no_grad()
def generate(lesson: Lesson) -> Figures:
    """Denoise noise into images, and let a classifier of real images say what they show."""
    pipeline = load_pipeline(str(lesson.output_dir / "denoiser" / "model"))
    unet, scheduler, classes = pipeline.unet, pipeline.scheduler, lesson.splits.num_classes or 1
    labels = torch.arange(SHOWN_IMAGES, device=pipeline.device) % classes
    noise = lesson.noise(torch.empty(SHOWN_IMAGES, unet.config.in_channels, *pipeline.latent_size))
    steps = [noise.to(pipeline.device)]

    def remember(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        steps.append(latents)
        return latents

    scheduler.set_timesteps(SHOWN_STEPS[-1])
    denoise_latents(
        unet,
        scheduler,
        steps[0],
        scheduler.timesteps,
        {"class_labels": labels},
        after_step=remember,
    )
    lesson.show(
        "generation",
        {f"step {i}": decode_latents(pipeline.vae, steps[i]) for i in SHOWN_STEPS},
    )
    train, held_out = (
        LabelledImages.from_tensors(*read_images_and_labels(x))
        for x in (lesson.splits.train, lesson.splits.validation)
    )
    with torch.enable_grad():
        classifier = train_classifier(train, classes, lesson.seed)
    asked = torch.arange(GENERATED_IMAGES) % classes
    images = sample_images(pipeline, asked.tolist(), GENERATED_IMAGES, lesson.seed, 100, 2.0)
    return {
        "label_agreement": measure_accuracy(
            classifier, LabelledImages.from_tensors(images * 2 - 1, asked)
        ),
        "label_agreement_images": GENERATED_IMAGES,
        "real_label_agreement": measure_accuracy(classifier, held_out),
        "chance_label_agreement": 1 / classes,
    }
