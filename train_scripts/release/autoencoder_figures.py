"""The figures on the card of a released autoencoder: its own, an ablation and a comparison."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.errors import UserError
from hf_latent.evaluation.features.networks import FeatureNetworkName, load_feature_network
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions, reconstruct
from hf_latent.evaluation.pictures import image_grid, save_picture
from hf_latent.models.load import load_autoencoder
from hf_latent.output import read_json
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.losses import perceptual_loss
from hf_latent.training.run.checkpoints import SETTINGS_WITHOUT_EFFECT

ABLATION_IMAGES = 12
BATCH_SIZE = 100
PERCEPTUAL_NETWORK: FeatureNetworkName = "efficientnet-lite0"
PSNR_HEADINGS = {"test_psnr_db": "PSNR", "test_grey_psnr_db": "PSNR on mid-grey"}
# The settings in which the runs of an ablation may differ.
LOSS_SETTINGS = {
    "reconstruction_loss",
    "kl_weight",
    "perceptual_weight",
    "perceptual_network",
    "discriminator_weight",
    "discriminator_start",
    "discriminator_base_channels",
    "discriminator_num_layers",
}


@torch.no_grad()
def measure_autoencoder(vae: AutoencoderKL, dataset: ImageDataset) -> dict[str, float]:
    """Measure reconstructions from the posterior's mean.

    Args:
        vae: a trained autoencoder.
        dataset: held-out images.

    Returns:
        Figures, each key with the prefix `test_`.
    """
    network = load_feature_network(PERCEPTUAL_NETWORK)
    distances: list[float] = []

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in DataLoader(dataset, BATCH_SIZE):
            images = batch["images"]
            reconstructions = reconstruct(vae, images)
            distance = perceptual_loss(network, reconstructions, images).item()
            distances.append(distance * len(images))
            yield images / 2 + 0.5, reconstructions / 2 + 0.5

    kept = measure_reconstructions(pairs(), dataset.unpadded_box())
    figures = {f"test_{name}": value for name, value in asdict(kept).items()}
    figures["test_perceptual_distance"] = sum(distances) / len(dataset)
    return {name: value for name, value in figures.items() if value is not None}


def check_ablation(runs: list[str], fingerprint: str) -> None:
    """Check that an ablation's runs differ only in their loss and have the same held-out images.

    Args:
        runs: NAME=FOLDER of each.
        fingerprint: of the released run's held-out images.

    Raises:
        UserError: if not; the message names the first such run and setting.
    """
    first: dict[str, Any] | None = None
    for run in runs:
        folder = Path(run.partition("=")[2])
        report = read_report(folder)
        if report["validation_fingerprint"] != fingerprint:
            raise UserError(f"{folder} has other held-out images than the released run")
        names = (
            {field.name for field in fields(AutoencoderConfig)}
            - LOSS_SETTINGS
            - SETTINGS_WITHOUT_EFFECT
        )
        kept = {name: report.get(name) for name in sorted(names)}
        first = first or kept
        if other := [k for k in kept if kept[k] != first[k]]:
            raise UserError(f"{folder} differs from the ablation's first run in {other[0]}")


def measure_ablation(
    runs: list[str], dataset: ImageDataset, model_dir: Path
) -> list[dict[str, Any]]:
    """Measure short runs on the same images, and save ablation.png with a row for each.

    Args:
        runs: NAME=FOLDER of each.
        dataset: held-out images.
        model_dir: for the picture.

    Returns:
        The figures of each run.
    """
    images = dataset.evenly_spaced(ABLATION_IMAGES).read()
    rows, shown, names = [], [images], ["originals"]
    for run in runs:
        name, _, folder = run.partition("=")
        report = read_report(Path(folder))
        vae = load_autoencoder(str(Path(folder) / "model"))
        figures = measure_autoencoder(vae, dataset)
        shown.append(reconstruct(vae, images))
        names.append(name)
        kept = {k: figures[f"test_{k}"] for k in ("psnr_db", "ssim", "perceptual_distance")}
        rows.append({"name": name, "steps": report["steps"], **kept})
    picture = image_grid(torch.cat(shown) / 2 + 0.5, ABLATION_IMAGES, names)
    save_picture(model_dir / "ablation.png", picture)
    return rows


def comparison_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the card's comparison table: names, and formatted figures by heading.

    Args:
        path: of a comparison.json.
    """
    report = read_json(path)
    count = report["num_images"]
    return [
        {
            "name": row["name"],
            "figures": {
                "latent": " x ".join(map(str, row["latent_shape"])),
                "fewer values": f"{row['compression_ratio']:g} times",
                **{
                    heading: f"{row[key]:.2f} dB"
                    for key, heading in PSNR_HEADINGS.items()
                    if key in row
                },
                f"FD of {count} generated": " and ".join(
                    f"{distance:.1f}" for distance in row["generated_fd_by_seed"]
                ),
                f"FD of {count} real": f"{report['real_against_real_fd']:.1f}",
            },
        }
        for row in report["models"]
    ]


def read_report(run: Path) -> dict[str, Any]:
    """Read a finished run's report.json.

    Raises:
        UserError: if there is none.
    """
    if not (run / "report.json").is_file():
        raise UserError(f"{run} is not a finished run: it has no report.json")
    return read_json(run / "report.json")
