"""Saved models with reports, as trainings and evaluations write them."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from PIL import Image

from hf_latent.models.frozen import hash_weights
from hf_latent.output import write_json

ROOT = Path(__file__).parents[2]
MEASURED = Path(__file__).with_name("measured.json")  # of an evaluation
TRAINING: dict[str, Any] = {
    "data": "fashion_mnist_full",
    "resize_mode": "pad",
    "horizontal_flip": False,
    "train_batch_size": 32,
    "gradient_accumulation_steps": 2,
    "processes": 3,
    "device": "cpu",
    "cpu_cores": 4,
    "torch_threads": 1,
    "train_images": 60_000,
    "held_out_split_images": 10_000,
    "validation_fingerprint": "0528c054765cc27e",
    "image_shape": [1, 16, 16],
    "steps": 18_000,
    "seconds": 5400.0,
    "images_per_second": 640.4,
    "held_out_loss": 0.51234,
    "held_out_images": 512,
    "encode_seconds": 61.0,
    "peak_memory_mb": 1234.4,
    "python_version": "3.11.7",
    "torch_version": "2.13.0",
    "diffusers_version": "0.42.1",
    "autoencoder": "fashion-mnist-f4",
    "autoencoder_data": "fashion_mnist_full",
    "autoencoder_train_images": 59_000,
    "autoencoder_steps": 6000,
    "autoencoder_seconds": 1658.8,
    "autoencoder_train_batch_size": 32,
    "autoencoder_held_out_psnr_db": 32.77,
    "autoencoder_held_out_images": 1000,
    "autoencoder_validation_fingerprint": "0528c054765cc27e",
}


def weights_of(pipeline) -> dict[str, str]:
    return {f"{name}_weights_sha256": hash_weights(getattr(pipeline, name)) for name in PARTS}


PARTS = ("vae", "unet")


def measured(pipeline, **changes) -> dict[str, Any]:
    """The figures of a real evaluation, as if they were this pipeline's."""
    known = {"feature_extractor": "efficientnet-lite0", **weights_of(pipeline)}
    return json.loads(MEASURED.read_text()) | known | changes


def write_reports(folder: Path, pipeline, training=(), metrics=(), pictures=()) -> None:
    """Write reports beside a saved pipeline."""
    if training is not None:
        write_json(folder / "training.json", TRAINING | weights_of(pipeline) | dict(training))
        (folder / "config.yaml").write_text("data: fashion_mnist_full\nmax_train_steps: 18000\n")
    if metrics is not None:
        write_json(folder / "metrics.json", measured(pipeline, **dict(metrics)))
    for name in pictures:
        Image.new("RGB", (200, 100)).save(folder / name)


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def results(card: str) -> list[dict[str, Any]]:
    """The metrics of a card's model-index, of all its results."""
    (index,) = huggingface_hub.ModelCard(card).data.to_dict()["model-index"]
    return [metric for result in index["results"] for metric in result["metrics"]]


def unlisted(card: str, title: str) -> list[str]:
    """The numbers in the tables under a heading that the model-index lacks."""
    values = [metric["value"] for metric in results(card)]
    rows = [line.strip("| ").split(" | ") for line in section(card, title).splitlines()]
    cells = [row[1:] if title == "Does it copy?" else row[1:2] for row in rows if len(row) > 1]
    floor = re.findall(r"perfect denoiser: ([\d.]+)", section(card, title))
    texts = [text for row in cells for cell in row for text in re.split(r", (?=[+-]?\d)| ± ", cell)]
    shown = [x[0] for x in map(re.compile(r"[+-]?\d[\d,]*(\.\d+)?").match, texts) if x] + floor
    assert len(shown) > 1
    return [
        x
        for x in shown
        if not any(f"{v:,.{len(x.partition('.')[2])}f}" == x.lstrip("+") for v in values)
    ]


def section(card: str, title: str) -> str:
    """The text under a heading."""
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]
