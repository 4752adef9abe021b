"""The figures and pictures of a quickstart."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_latent.data.images.pixels import Box
from hf_latent.evaluation.images.sampling import choose_guidance, count_evaluations, sample_images
from hf_latent.evaluation.machine import machine_figures
from hf_latent.evaluation.measures.classifier import LabelledImages, measure_accuracy
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions
from hf_latent.evaluation.pictures import image_grid, interleave, labelled_rows, save_picture
from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import measure_compression
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.run.clock import TrainingSummary

SAMPLES_PER_CLASS = 8
PAIRS = 40


def measure_autoencoder(
    pipeline: LatentDiffusionPipeline, test_images: torch.Tensor, box: Box, output_dir: Path
) -> dict[str, Any]:
    """Measure reconstructions of test images, and save reconstructions.png.

    Args:
        pipeline: the model.
        test_images: `(N, C, H, W)` float in [-1, 1].
        box: the part of an image inside its padding.
        output_dir: for the picture: each image beside its reconstruction.

    Returns:
        Figures for the report.
    """
    originals = test_images / 2 + 0.5
    reconstructions = torch.cat(
        [torch.as_tensor(pipeline.reconstruct(x)).cpu() for x in test_images.split(200)]
    )
    kept = asdict(measure_reconstructions([(originals, reconstructions)], box))
    channels, height, width = test_images.shape[1:]
    compression = measure_compression(pipeline.vae, (channels, height, width))
    pairs = interleave(originals[:PAIRS], reconstructions[:PAIRS])
    save_picture(
        output_dir / "reconstructions.png", image_grid(pairs, 2 * SAMPLES_PER_CLASS, group=2)
    )
    return {
        "image_shape": compression.image_shape,
        "latent_shape": compression.latent_shape,
        "compression_ratio": compression.ratio,
        **{f"test_{key}": value for key, value in kept.items() if value is not None},
    }


def measure_samples(
    pipeline: LatentDiffusionPipeline,
    classifier: nn.Module,
    num_images: int,
    seed: int,
    guidance_scale: float,
    num_inference_steps: int,
    output_dir: Path,
    now: Callable[[], float],
) -> dict[str, Any]:
    """Measure the label agreement of samples, and save samples.png.

    Args:
        pipeline: the model.
        classifier: trained on real images.
        num_images: number of samples to score.
        seed: of the first image.
        guidance_scale: classifier-free guidance; 1 is off.
        num_inference_steps: sampling steps.
        output_dir: for the picture, with a row a class.
        now: the clock, in seconds.

    Returns:
        Figures for the report.
    """
    labels = list(pipeline.id2label)
    shown = SAMPLES_PER_CLASS * len(labels)
    count = max(num_images, shown)
    start = now()
    samples = sample_images(pipeline, labels, count, seed, 100, guidance_scale, num_inference_steps)
    seconds = now() - start
    scored = samples[:num_images]
    asked_for = torch.arange(len(scored)) % len(labels)
    picture = labelled_rows(samples[:shown], labels, pipeline.id2label)
    save_picture(output_dir / "samples.png", picture)
    guidance = choose_guidance(pipeline, guidance_scale, None)
    return {
        "label_agreement": measure_accuracy(
            classifier, LabelledImages.from_tensors(scored * 2 - 1, asked_for)
        ),
        "label_agreement_images": len(scored),
        "denoiser_evaluations_per_image": count_evaluations(
            pipeline, num_inference_steps, guidance
        ),
        "sampling_images_per_second": count / seconds,
    }


def card_metrics(
    report: dict[str, Any], pipeline: LatentDiffusionPipeline, data: str
) -> dict[str, Any]:
    """Return the content of the model's metrics.json, with the keys of `hf-latent evaluate`.

    Args:
        report: the content of report.json.
        pipeline: the model.
        data: name of the images.
    """
    names = {
        "label_agreement_images": "num_images",
        "classifier_real_test_accuracy": "label_agreement_judge_real_accuracy",
        **{f"test_{x}": f"reconstruction_{x}" for x in ("images", "psnr_db", "ssim")},
        **{f"test_unpadded_{x}": f"reconstruction_unpadded_{x}" for x in ("psnr_db", "ssim")},
    }
    same = ("guidance_scale", "num_inference_steps", "denoiser_evaluations_per_image")
    return {
        "vae_weights_sha256": hash_weights(pipeline.vae),
        "unet_weights_sha256": hash_weights(pipeline.unet),
        "data": data,
        "train_images": report["train_images"],
        "validation_fingerprint": report["validation_fingerprint"],
        **{key: report[key] for key in (*same, "label_agreement")},
        "label_agreement_judge_real_images": report["test_images"],
        **{name: report[key] for key, name in names.items()},
        **machine_figures(),
    }


def training_figures(name: str, summary: TrainingSummary) -> dict[str, Any]:
    """Return a training's figures; each key starts with the training's name."""
    return {
        f"{name}_steps": summary.steps,
        f"{name}_training_seconds": summary.seconds,
        f"{name}_images_per_second": summary.images_per_second,
        f"{name}_train_loss": summary.train_loss,
        f"{name}_held_out_loss": list(summary.validation_losses.values())[-1],
    }


def describe_quickstart(report: dict[str, Any], output_dir: Path) -> str:
    """Return lines for the terminal: the main figures, the files and what to try next.

    Args:
        report: the content of report.json.
        output_dir: its folder.
    """
    lines = [
        "",
        f"Done in {report['total_seconds'] / 60:.1f} minutes:",
        f"  compression      {report['compression_ratio']:g} times fewer values",
        f"  reconstruction   {report['test_psnr_db']:.1f} dB PSNR, {report['test_ssim']:.3f} SSIM "
        f"of {report['test_images']:,} test images",
        f"  label agreement  {report['label_agreement']:.3f} of "
        f"{report['label_agreement_images']:,} samples at guidance {report['guidance_scale']:g} "
        f"(real test images: {report['classifier_real_test_accuracy']:.3f})",
        f"  look at          {output_dir}/samples.png, {output_dir}/reconstructions.png, "
        f"{output_dir}/report.json",
        "",
        "Try next:",
        f"  hf-latent generate --model {output_dir}/model --class_labels 0,1,2 --num_images 24 "
        "--output grid.png --seed 7",
        "  accelerate launch -m hf_latent.training.autoencoder --data YOUR_FOLDER "
        "--resolution 64 --output_dir runs/autoencoder",
        "  accelerate launch -m hf_latent.training.denoiser --data YOUR_FOLDER --resolution 64 "
        "--vae runs/autoencoder/model --output_dir runs/denoiser",
    ]
    return "\n".join(lines)
