"""The report of a quickstart: figures of its trainings, its card's figures, and its text."""

from pathlib import Path
from typing import Any

from hf_latent.evaluation.machine import machine_figures
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.run.clock import TrainingSummary


def card_metrics(
    report: dict[str, Any], pipeline: LatentDiffusionPipeline, data: str
) -> dict[str, Any]:
    """Return the content of the model's metrics.json, with the keys of `hf-latent evaluate`.

    Args:
        report: the content of report.json.
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


def summary_figures(name: str, summary: TrainingSummary) -> dict[str, Any]:
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
        "  hf-latent train-autoencoder --data YOUR_FOLDER "
        "--resolution 64 --output_dir runs/autoencoder",
        "  hf-latent train-denoiser --data YOUR_FOLDER --resolution 64 "
        "--vae runs/autoencoder/model --output_dir runs/denoiser",
    ]
    return "\n".join(lines)
