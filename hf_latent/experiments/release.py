"""From a finished run to a released autoencoder: measured on images it never saw, with a card."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from hf_latent.command import parse_config
from hf_latent.data.images import ImageDataset, open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.features import load_feature_network
from hf_latent.evaluation.pictures import image_grid, interleave
from hf_latent.evaluation.reconstruction import center_crop, measure_reconstructions
from hf_latent.hub.model_card import TEMPLATE, render_autoencoder_card
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import measure_compression
from hf_latent.output import replaced_whole, write_json, write_text
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.losses import perceptual_loss

PAIRS, ABLATION_IMAGES, COLUMNS = 40, 12, 16
BATCH_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """Measure a trained autoencoder, and write the files that it is released with.

    Attributes:
        run: the finished run's folder.
        about: YAML with what no measurement tells: name, licence, the card's texts; and
            unpadded_size, where the images were padded.
        recipe: the run's recipe, printed on the card.
        ablation: names and run folders, NAME=FOLDER, of short runs to compare with each other.
        comparison: a comparison.json of train_scripts/compare_models.py, printed on the card.
        pretrained_dir: the model goes to a folder with its name in here.
        cards_dir: the card, its pictures and metrics.json go to a folder with its name in here.
    """

    run: str
    about: str
    recipe: str
    ablation: list[str] | None = None
    comparison: str | None = None
    pretrained_dir: str = "hf_latent/pretrained"
    cards_dir: str = "model_cards"


@torch.no_grad()
def measure_autoencoder(
    vae: AutoencoderKL, dataset: ImageDataset, unpadded_size: int | None = None
) -> dict[str, float]:
    """Measure reconstructions from the posterior's mean.

    Args:
        vae: a trained autoencoder.
        dataset: images that it never saw.
        unpadded_size: height and width of what padding was put around; None: nothing was.

    Returns:
        Figures, `test_` before each name.
    """
    network = load_feature_network("efficientnet-lite0")
    distances: list[float] = []
    crops: list[tuple[torch.Tensor, torch.Tensor]] = []

    def reconstruct() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in DataLoader(dataset, BATCH_SIZE):
            images = batch["images"]
            reconstructions = vae.decode(vae.encode(images).latent_dist.mean).sample
            distance = perceptual_loss(network, reconstructions, images).item()
            distances.append(distance * len(images))
            original, shown = images / 2 + 0.5, reconstructions / 2 + 0.5
            if unpadded_size is not None:
                crops.append(
                    (center_crop(original, unpadded_size), center_crop(shown, unpadded_size))
                )
            yield original, shown

    figures = {f"test_{k}": v for k, v in asdict(measure_reconstructions(reconstruct())).items()}
    figures["test_perceptual_distance"] = sum(distances) / len(dataset)
    if crops:
        cropped = measure_reconstructions(crops)
        figures |= {
            "test_unpadded_psnr_db": cropped.psnr_db,
            "test_unpadded_ssim": cropped.ssim,
        }
    return {name: value for name, value in figures.items() if value is not None}


def _first_images(dataset: ImageDataset, count: int) -> torch.Tensor:
    places = torch.linspace(0, len(dataset) - 1, count).long().tolist()
    return torch.stack([dataset[place]["images"] for place in places])


@torch.no_grad()
def _reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(images).latent_dist.mean).sample


def measure_ablation(
    runs: list[str], dataset: ImageDataset, card_dir: Path
) -> list[dict[str, Any]]:
    """Measure short runs on the same images, and save ablation.png with a row each.

    Args:
        runs: NAME=FOLDER of each.
        dataset: images that none of them saw.
        card_dir: for the picture.

    Returns:
        A row a run.
    """
    images = _first_images(dataset, ABLATION_IMAGES)
    rows, shown = [], [images]
    for run in runs:
        name, _, folder = run.partition("=")
        report = _read_report(Path(folder))
        vae = load_autoencoder(str(Path(folder) / "model"))
        figures = measure_autoencoder(vae, dataset)
        shown.append(_reconstruct(vae, images))
        kept = {k: figures[f"test_{k}"] for k in ("psnr_db", "ssim", "perceptual_distance")}
        rows.append({"name": name, "steps": report["steps"], "seconds": report["seconds"], **kept})
    with replaced_whole(card_dir / "ablation.png") as temporary:
        image_grid(torch.cat(shown) / 2 + 0.5, ABLATION_IMAGES).save(temporary)
    return rows


def comparison_rows(path: Path) -> list[dict[str, Any]]:
    """Return the card's table of compared autoencoders.

    Args:
        path: of a comparison.json.

    Returns:
        A row a model, its figures as the card shows them by their headings.
    """
    report = json.loads(path.read_text())
    count = report["num_images"]
    return [
        {
            "name": row["name"],
            "figures": {
                "latent": " x ".join(map(str, row["latent_shape"])),
                "fewer values": f"{row['compression_ratio']:g} times",
                "PSNR on white": f"{row['test_psnr_db']:.2f} dB",
                "PSNR on mid-grey": f"{row['test_grey_psnr_db']:.2f} dB",
                f"FD of {count} generated": f"{row['generated_fd']:.1f}",
                f"FD of {count} real": f"{report['real_against_real_fd']:.1f}",
            },
        }
        for row in report["models"]
    ]


def _read_report(run: Path) -> dict[str, Any]:
    if not (run / "report.json").is_file():
        raise UserError(f"{run} is no finished run: it has no report.json")
    return json.loads((run / "report.json").read_text())


def release_autoencoder(config: ReleaseConfig) -> dict[str, Any]:
    """Measure a finished run's autoencoder and write model, card, pictures and metrics.json.

    Args:
        config: the run and what is to be said about it.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: if the run is not finished, or its data cannot be read.
    """
    run = Path(config.run)
    report = _read_report(run)
    about = yaml.safe_load(Path(config.about).read_text())
    settings = parse_config(AutoencoderConfig, ["--config", str(run / "config.yaml")])
    splits = open_images(settings)
    vae = load_autoencoder(str(run / "model"))
    card_dir = Path(config.cards_dir) / about["name"]
    card_dir.mkdir(parents=True, exist_ok=True)
    model_dir = Path(config.pretrained_dir) / about["name"]
    with replaced_whole(model_dir) as temporary:
        vae.save_pretrained(temporary)

    images = _first_images(splits.validation, PAIRS)
    with replaced_whole(card_dir / "reconstructions.png") as temporary:
        pairs = interleave(images, _reconstruct(vae, images))
        image_grid(pairs / 2 + 0.5, COLUMNS).save(temporary)
    compression = measure_compression(vae, splits.image_shape)
    weights = model_dir / "diffusion_pytorch_model.safetensors"
    metrics = {
        **about,
        "recipe": Path(config.recipe).read_text().strip(),
        "settings": {"train_batch_size": settings.train_batch_size},
        "image_shape": compression.image_shape,
        "image_values": compression.image_values,
        "latent_shape": compression.latent_shape,
        "latent_values": compression.latent_values,
        "compression_ratio": compression.ratio,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "weights_mb": weights.stat().st_size / 1e6,
        **measure_autoencoder(vae, splits.validation, about.get("unpadded_size")),
        "kl_nats_per_latent_value": report["held_out"]["kl_nats_per_latent_value"],
        **{
            key: report[key]
            for key in (
                "residual_mean",
                "residual_std",
                "train_images",
                "validation_fingerprint",
                "steps",
                "seconds",
                "images_per_second",
                "cpu_cores",
                "torch_version",
                "diffusers_version",
            )
        },
    }
    if config.ablation:
        metrics["ablation"] = measure_ablation(config.ablation, splits.validation, card_dir)
    if config.comparison:
        metrics["comparison"] = comparison_rows(Path(config.comparison))
    write_json(card_dir / "metrics.json", metrics)
    metrics = json.loads((card_dir / "metrics.json").read_text())
    template = Path(config.cards_dir) / TEMPLATE.name
    write_text(card_dir / "README.md", render_autoencoder_card(metrics, template))
    print(f"{about['name']}: {metrics['test_psnr_db']:.2f} dB, {metrics['test_ssim']:.4f} SSIM")
    return metrics
