"""Release a trained autoencoder: measure it on held-out images, and write its card.

python train_scripts/release/release_vae.py --run RUN --about CARD.yaml --recipe RECIPE.yaml
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from autoencoder_figures import (
    PERCEPTUAL_NETWORK,
    check_ablation,
    comparison_rows,
    measure_ablation,
    measure_autoencoder,
    read_report,
)
from hf_latent.command import Settings, parse_config, run_command
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.evaluation.pictures import image_grid, interleave, save_picture
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import measure_compression
from hf_latent.output import read_json, replaced_whole, write_json
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.run.checkpoints import SETTINGS_WITHOUT_EFFECT
from released_card import write_released_card

PAIRS, COLUMNS = 40, 16


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig(Settings):
    """Measure a trained autoencoder, and write the files of its release.

    Attributes:
        run: The finished run's folder.
        about: YAML with name, licence and the card's texts.
        recipe: The run's recipe, for the card.
        ablation: NAME=FOLDER of short runs to compare with each other.
        comparison: A comparison.json of compare_models.py, for the card.
        pretrained_dir: The model, its pictures and metrics.json go to a subfolder with its name.
        cards_dir: The card and its pictures go to a subfolder with its name.
    """

    run: str
    about: str
    recipe: str
    ablation: list[str] | None = None
    comparison: str | None = None
    pretrained_dir: str = "hf_latent/models/pretrained"
    cards_dir: str = "model_cards"


def release_autoencoder(config: ReleaseConfig) -> dict[str, Any]:
    """Measure a finished run's autoencoder; write the model, card, pictures and metrics.json.

    Args:
        config: the run and the card's texts.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: if the run is not finished, differs from its recipe, or its data cannot be read.
    """
    run = Path(config.run)
    report = read_report(run)
    about = yaml.safe_load(Path(config.about).read_text())
    settings = parse_config(AutoencoderConfig, ["--config", str(run / "config.yaml")])
    recipe = parse_config(
        AutoencoderConfig, ["--config", config.recipe, "--output_dir", settings.output_dir]
    )
    trained, asked = asdict(settings), asdict(recipe)
    compared = asked.keys() - SETTINGS_WITHOUT_EFFECT
    if other := sorted(name for name in compared if asked[name] != trained[name]):
        raise UserError(f"{run} was not trained by {config.recipe}: they differ in {other[0]}")
    splits = open_images(settings)
    if config.ablation:
        check_ablation(config.ablation, splits.validation_fingerprint)
    vae = load_autoencoder(str(run / "model"))
    model_dir = Path(config.pretrained_dir) / about["name"]
    with replaced_whole(model_dir, written=MODEL_FILES) as temporary:
        vae.save_pretrained(temporary)

    images = splits.validation.evenly_spaced(PAIRS).read()
    pairs = interleave(images, reconstruct(vae, images)) / 2 + 0.5
    save_picture(model_dir / "reconstructions.png", image_grid(pairs, COLUMNS, group=2))
    compression = measure_compression(vae, splits.image_shape)
    weights = model_dir / "diffusion_pytorch_model.safetensors"
    metrics = {
        **about,
        "recipe": Path(config.recipe).read_text().strip(),
        "train_batch_size": settings.train_batch_size,
        "vae_weights_sha256": hash_weights(vae),
        "load_from": f"hf_latent/models/pretrained/{about['name']}",
        "image_shape": compression.image_shape,
        "image_values": compression.image_values,
        "latent_shape": compression.latent_shape,
        "latent_values": compression.latent_values,
        "compression_ratio": compression.ratio,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "weights_mb": weights.stat().st_size / 1e6,
        **measure_autoencoder(vae, splits.validation),
        "perceptual_network": PERCEPTUAL_NETWORK,
        "held_out_split_images": len(splits.validation),
        "kl_nats_per_latent_value": report["held_out_kl_nats_per_latent_value"],
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
                "torch_threads",
                "torch_version",
                "diffusers_version",
            )
            if key in report  # a finished run that was resumed has no images_per_second
        },
    }
    if config.ablation:
        metrics["ablation"] = measure_ablation(config.ablation, splits.validation, model_dir)
    if config.comparison:
        metrics["comparison"] = comparison_rows(Path(config.comparison))
    write_json(model_dir / "metrics.json", metrics)
    metrics = read_json(model_dir / "metrics.json")
    write_released_card(model_dir, Path(config.cards_dir) / about["name"])
    print(f"{about['name']}: {metrics['test_psnr_db']:.2f} dB, {metrics['test_ssim']:.4f} SSIM")
    return metrics


if __name__ == "__main__":
    run_command(ReleaseConfig, release_autoencoder)
