"""The card of a released autoencoder, made from its figures."""

from pathlib import Path
from typing import Any

import huggingface_hub

TEMPLATE = Path("model_cards") / "autoencoder_template.md"


def render_autoencoder_card(metrics: dict[str, Any], template: str | Path = TEMPLATE) -> str:
    """Fill an autoencoder's card in.

    Args:
        metrics: the content of its metrics.json, see `experiments/release.py`.
        template: Markdown with jinja2's marks.

    Returns:
        The card: metadata as YAML, then Markdown.
    """
    data = huggingface_hub.ModelCardData(
        license=metrics["license"],
        library_name="diffusers",
        tags=["autoencoder", "latent-diffusion", "hf-latent", "safetensors"],
        datasets=metrics["datasets"],
        model_name=metrics["name"],
        eval_results=[
            huggingface_hub.EvalResult(
                task_type="image-to-image",
                task_name="Reconstruction",
                dataset_type=metrics["data"],
                dataset_name=f"{metrics['data_name']}, {metrics['test_images']:,} held-out images",
                metric_type=kind,
                metric_name=label,
                metric_value=round(metrics[key], 4),
            )
            for key, kind, label in (
                ("test_psnr_db", "psnr", "PSNR (dB)"),
                ("test_ssim", "ssim", "SSIM"),
            )
        ],
    )
    card = huggingface_hub.ModelCard.from_template(data, template_path=str(template), **metrics)
    return str(card).rstrip() + "\n"
