"""`hf-latent inspect`: what an autoencoder compresses and what it loses, on one's own images."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from hf_latent.data.device import fastest_device
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images, with_values_of
from hf_latent.errors import UserError
from hf_latent.evaluation.config import FeatureExtractorName, ImagesOfModelConfig
from hf_latent.evaluation.features.extractors import image_vectors, load_feature_extractor
from hf_latent.evaluation.inspection.latent_figures import measure_smoothness, rate_figures
from hf_latent.evaluation.inspection.pictures import save_pictures
from hf_latent.evaluation.inspection.report import render_report
from hf_latent.evaluation.inspection.round_trip import RoundTrip
from hf_latent.evaluation.inspection.verdict import choose_verdict
from hf_latent.evaluation.inspection.yardsticks import compare_yardsticks
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions
from hf_latent.evaluation.report_text import write_report
from hf_latent.evaluation.stages import Stages
from hf_latent.lock import locks_output
from hf_latent.models.frozen import freeze, hash_weights
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.models.presets import Compression, image_size, measure_compression
from hf_latent.output import check_output_dir
from hf_latent.pipeline.decode import shown_channels

YARDSTICK_IMAGES = 200
SMOOTHNESS_IMAGES = 32
FEWEST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ImagesOfModelConfig):
    """Measure an autoencoder's compression and its loss of information, and give a verdict.

    Attributes:
        vae: An autoencoder of any kind, or a pipeline that contains one: its folder or that of the
            run that trained it, the name of a released one (fashion-mnist-f4, emoji), or an id on
            the Hub.
        output_dir: The folder for report.md, report.json and pictures.
        overwrite_output_dir: Accept a folder with files in it; files of the same name are replaced.
        max_images: The largest number of held-out images, evenly spaced.
        feature_extractor: The network for the distance between images and reconstructions:
            efficientnet-lite0 (needs the extra features), dinov2, inception, or none.
        batch_size: Images per batch.
        dataloader_num_workers: Processes that decode images.
    """

    vae: str
    output_dir: str
    overwrite_output_dir: bool = False
    max_images: PositiveInt = 2000
    feature_extractor: FeatureExtractorName | Literal["none"] = "efficientnet-lite0"
    batch_size: PositiveInt = 32
    dataloader_num_workers: NonNegativeInt = 0


def open_fitting_images(
    images: ImagesOfModelConfig, vae: Autoencoder, max_images: int
) -> tuple[ImageSplits, ImageDataset, Compression]:
    """Open the data and check that it fits the autoencoder.

    Returns:
        The splits, the held-out images to inspect, and the sizes of images and latents.

    Raises:
        UserError: if size or channels do not fit, or there are too few held-out images.
    """
    config = with_values_of(vae, images.images_config(image_size(vae)))
    splits = open_images(config, keep_in_memory=False)
    compression = measure_compression(vae, splits.image_shape)
    held_out = splits.validation.evenly_spaced(max_images)
    if len(held_out) < FEWEST_IMAGES:
        raise UserError(
            f"{len(held_out)} held-out image is too few: raise --validation_fraction or "
            "--max_images"
        )
    return splits, held_out, compression


def compression_figures(compression: Compression) -> dict[str, Any]:
    """Return the sizes of images and latents: shapes, values and MB."""
    images, latents = compression.image_values, compression.latent_values
    return {
        "image_shape": compression.image_shape,
        "latent_shape": compression.latent_shape,
        "image_values": images,
        "latent_values": latents,
        "compression_ratio": compression.ratio,
        "images_uint8_mb_per_100000": images / 10,
        "latents_float32_mb_per_100000": 4 * latents / 10,
        "latents_float16_mb_per_100000": 2 * latents / 10,
    }


@locks_output
def inspect_autoencoder(config: InspectConfig) -> dict[str, Any]:
    """Measure an autoencoder; write report.json, report.md and pictures.

    Returns:
        The content of report.json.

    Raises:
        UserError: if the autoencoder, the data or a setting does not fit, in one line.
    """
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    stages = Stages(4 if config.feature_extractor == "none" else 5)
    with stages.stage("setup", shown=False):
        vae = load_autoencoder(config.vae)
        freeze(vae)
        vae.to(fastest_device())
        splits, held_out, compression = open_fitting_images(config, vae, config.max_images)
        name = config.feature_extractor
        shown = shown_channels(vae)
        extractor = None if name == "none" else load_feature_extractor(name)
        if extractor is not None:
            extractor.see(shown)
    trip = RoundTrip(vae, splits.image_shape, extractor, config.seed)
    with stages.stage("round trip", len(held_out)) as bar:

        def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            loader: DataLoader = DataLoader(
                held_out, config.batch_size, num_workers=config.dataloader_num_workers
            )
            for batch in loader:
                decoded = trip(batch["images"])
                bar.update(len(decoded))
                yield batch["images"] / 2 + 0.5, decoded / 2 + 0.5

        kept = asdict(measure_reconstructions(pairs(), held_out.unpadded_box(), shown))
    figures = {k: v for k, v in kept.items() if v is not None} | trip.figures()
    if extractor is not None:
        count = min(len(held_out), len(splits.train))
        with stages.stage("real distance", 2 * count) as bar:
            train_vectors, held_out_vectors = (
                image_vectors(dataset.evenly_spaced(count), extractor, 100, bar.update)
                for dataset in (splits.train, splits.validation)
            )
            figures["real_fd"] = frechet_distance(held_out_vectors, train_vectors)
        figures["real_fd_images"] = count
        figures["reconstruction_fd_preprocessing"] = extractor.preprocessing
    figures |= compression_figures(compression) | rate_figures(trip.rate, compression)
    with stages.stage("yardsticks"):
        figures["yardsticks"] = compare_yardsticks(
            vae,
            held_out.evenly_spaced(YARDSTICK_IMAGES),
            compression.latent_values,
            figures["budget_bytes"],
            config.batch_size,
        )
        own, bicubic = (
            next(x["psnr_db"] for x in figures["yardsticks"] if x["name"] == name)
            for name in ("autoencoder", "bicubic")
        )
        if math.isfinite(bicubic):  # a flat image, or as many values as an image, has no error
            figures["bicubic_advantage_db"] = bicubic - own
        few = held_out.evenly_spaced(SMOOTHNESS_IMAGES)
        figures |= measure_smoothness(vae, few, trip.moments.std, config.seed, config.batch_size)
    verdict, reasons = choose_verdict(figures)
    report = {
        "verdict": verdict,
        "reasons": reasons,
        "vae": shown_name(config.vae),
        "vae_class": type(vae).__name__,
        "vae_sha256": hash_weights(vae),
        "data": shown_name(config.data),
        "preprocessing": held_out.preprocessing,
        "held_out_fingerprint": held_out.fingerprint,
        "validation_fingerprint": splits.validation_fingerprint,
        **splits.summary.figures(),
        **figures,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_report(output_dir, report | stages.figures() | machine_figures(), render_report)
    with stages.stage("pictures"):
        save_pictures(output_dir, vae, held_out, torch.cat(trip.psnr_db), report, config.batch_size)
    report |= stages.figures() | machine_figures()
    write_report(output_dir, report, render_report)
    print("\n".join([f"{report['vae']}: {verdict}", *(f"- {reason}" for reason in reasons)]))
    print(f"{output_dir / 'report.md'}")
    return report
