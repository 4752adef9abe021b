"""`hf-latent inspect`: what autoencoders compress and what they lose, on one's own images."""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_latent.data.device import fastest_device
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.pixels import to_uint8
from hf_latent.evaluation.config import FeatureExtractorName, ImagesOfModelConfig
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.inspection.comparison import compare_autoencoders, distinct_names
from hf_latent.evaluation.inspection.images import InspectedImages, RealVectors, open_fitting_images
from hf_latent.evaluation.inspection.latent_figures import measure_smoothness, rate_figures
from hf_latent.evaluation.inspection.pictures import save_pictures
from hf_latent.evaluation.inspection.report import render_report
from hf_latent.evaluation.inspection.round_trip import RoundTrip
from hf_latent.evaluation.inspection.verdict import choose_verdict
from hf_latent.evaluation.inspection.yardsticks import compare_yardsticks
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.floor import measure_floor
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.measures.interpolation import measure_ifid
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions
from hf_latent.evaluation.report_text import write_report
from hf_latent.evaluation.stages import Stages
from hf_latent.lock import locks_output
from hf_latent.models.frozen import freeze, hash_weights
from hf_latent.models.load import Autoencoder, load_autoencoder
from hf_latent.models.presets import Compression
from hf_latent.output import check_output_dir, read_json
from hf_latent.pipeline.decode import shown_channels

logger = logging.getLogger(__name__)

YARDSTICK_IMAGES = 200
SMOOTHNESS_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ImagesOfModelConfig):
    """Measure an autoencoder's compression and its loss of information, and give a verdict.

    Several autoencoders are also compared with one another, and ranked.

    Attributes:
        vae: An autoencoder of any kind, or a pipeline that contains one: its folder or that of the
            run that trained it, the name of a released one (fashion-mnist-f4, emoji), or an id on
            the Hub. Or several, as in --vae A B C.
        output_dir: The folder for report.md, report.json and pictures; of several autoencoders, for
            the comparison and a folder of each.
        overwrite_output_dir: Accept a folder with files in it; files of the same name are replaced.
            A killed comparison keeps the reports that it finished.
        max_images: The largest number of held-out images, evenly spaced.
        feature_extractor: The network for the distance between images and reconstructions:
            efficientnet-lite0 (needs the extra features), dinov2, inception, or none.
        batch_size: Images per batch.
        dataloader_num_workers: Processes that decode images.
    """

    vae: list[str] | str
    output_dir: str
    overwrite_output_dir: bool = False
    max_images: PositiveInt = 2000
    feature_extractor: FeatureExtractorName | Literal["none"] = "efficientnet-lite0"
    batch_size: PositiveInt = 32
    dataloader_num_workers: NonNegativeInt = 0

    @property
    def autoencoders(self) -> list[str]:
        """The given names."""
        return self.vae if isinstance(self.vae, list) else [self.vae]


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


def measure_kept(
    vae: Autoencoder,
    images: InspectedImages,
    batch_size: int,
    num_workers: int,
    seed: int,
    bar: tqdm,
) -> tuple[RoundTrip, dict[str, Any]]:
    """Encode and decode the images; return the round trip, and figures of what it keeps."""
    trip = RoundTrip(vae, images.held_out.image_shape, seed)
    vectors = []

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in DataLoader(images.held_out, batch_size, num_workers=num_workers):
            decoded = trip(batch["images"])
            if images.real is not None:
                vectors.append(images.real.extractor(to_uint8(decoded)))
            bar.update(len(decoded))
            yield batch["images"] / 2 + 0.5, decoded / 2 + 0.5

    kept = measure_reconstructions(pairs(), images.held_out.unpadded_box(), shown_channels(vae))
    figures = {k: v for k, v in asdict(kept).items() if v is not None} | trip.figures()
    if images.real is not None:
        figures["reconstruction_fd"] = frechet_distance(vectors, images.real.held_out_vectors)
    return trip, figures


def measure_distances(
    vae: Autoencoder,
    held_out: ImageDataset,
    real: RealVectors,
    batch_size: int,
    seed: int,
    bar: tqdm,
) -> dict[str, Any]:
    """Return the FD of real images, that of a perfect denoiser, and the interpolated FID."""
    few = held_out.evenly_spaced(len(real.train))
    floor = measure_floor(vae, few, real.train_vectors, real.extractor, batch_size, seed, bar)
    ifid = measure_ifid(
        vae, held_out, real.train, real.held_out_vectors, real.extractor, batch_size, seed, bar
    )
    known = {"real_fd": real.fd, "real_fd_images": len(real.train)}
    return known | {"floor_fd": floor, "ifid": ifid}


def measure_alternatives(
    vae: Autoencoder, held_out: ImageDataset, figures: dict[str, Any], batch_size: int
) -> dict[str, Any]:
    """Return what JPEG, WebP and resampling keep at the latent's size.

    Args:
        figures: have the latent's number of values and bytes.
    """
    few = held_out.evenly_spaced(YARDSTICK_IMAGES)
    values, budget = figures["latent_values"], figures["budget_bytes"]
    yardsticks = compare_yardsticks(vae, few, values, budget, batch_size)
    psnr = {x["name"]: x["psnr_db"] for x in yardsticks}
    found: dict[str, Any] = {"yardsticks": yardsticks}
    if math.isfinite(psnr["bicubic"]):  # a flat image, or as many values as an image: no error
        found["bicubic_advantage_db"] = psnr["bicubic"] - psnr["autoencoder"]
    return found


def identify(vae: Autoencoder, images: InspectedImages, seed: int) -> dict[str, Any]:
    """Return what the figures of a report depend on."""
    return {"vae_sha256": hash_weights(vae), "seed": seed, **images.identity()}


def inspect_autoencoder(
    name: str,
    vae: Autoencoder,
    compression: Compression,
    images: InspectedImages,
    config: InspectConfig,
    output_dir: Path,
    stages: Stages,
) -> dict[str, Any]:
    """Measure one autoencoder; write report.json, report.md and pictures.

    Returns:
        The content of report.json.
    """
    held_out, seed, batch_size = images.held_out, config.seed, config.batch_size
    with stages.stage("round trip", len(held_out)) as bar:
        trip, figures = measure_kept(
            vae, images, batch_size, config.dataloader_num_workers, seed, bar
        )
    if images.real is not None:
        count = 2 * (len(held_out) + len(images.real.train))
        with stages.stage("distances", count) as bar:
            figures |= measure_distances(vae, held_out, images.real, batch_size, seed, bar)
    figures |= compression_figures(compression) | rate_figures(trip.rate, compression)
    with stages.stage("yardsticks"):
        figures |= measure_alternatives(vae, held_out, figures, batch_size)
        few = held_out.evenly_spaced(SMOOTHNESS_IMAGES)
        figures |= measure_smoothness(vae, few, trip.moments.std, seed, batch_size)
    verdict, reasons = choose_verdict(figures)
    report = {
        "verdict": verdict,
        "reasons": reasons,
        "vae": name,
        "vae_class": type(vae).__name__,
        "data": shown_name(config.data),
        **identify(vae, images, seed),
        **images.splits.summary.figures(),
        **figures,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_report(output_dir, report | stages.figures() | machine_figures(), render_report)
    with stages.stage("pictures"):
        save_pictures(output_dir, vae, held_out, torch.cat(trip.psnr_db), report, batch_size)
    report |= stages.figures() | machine_figures()
    write_report(output_dir, report, render_report)
    print("\n".join([f"{name}: {verdict}", *(f"- {reason}" for reason in reasons)]))
    print(f"{output_dir / 'report.md'}")
    return report


def read_finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report that a killed comparison finished, if its figures are those of now."""
    report = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    fits = all(report.get(key) == value for key, value in identity.items())
    return report if fits and "pictures_seconds" in report else None


def load_frozen(name: str) -> Autoencoder:
    """Load an autoencoder, in eval mode, onto the accelerator if there is one."""
    vae = load_autoencoder(name)
    freeze(vae)
    return vae.to(fastest_device())


@locks_output
def inspect_autoencoders(config: InspectConfig) -> dict[str, Any]:
    """Measure an autoencoder, or several and compare them; write report.json and report.md.

    Returns:
        The content of report.json.

    Raises:
        UserError: if an autoencoder, the data or a setting does not fit, in one line.
    """
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    names = distinct_names(config.autoencoders, "vae")
    stages = Stages(4 if config.feature_extractor == "none" else 6)
    with stages.stage("setup", shown=False):
        vaes = {name: load_frozen(given) for name, given in names.items()}
        splits, held_out, compressions = open_fitting_images(config, vaes, config.max_images)
        images = InspectedImages(splits, held_out, None)
        if config.feature_extractor != "none":
            extractor = load_feature_extractor(config.feature_extractor)
            extractor.see(shown_channels(next(iter(vaes.values()))))
    if config.feature_extractor != "none":
        with stages.stage("real images", 2 * len(held_out)) as bar:
            workers = config.dataloader_num_workers
            real = RealVectors.read(
                held_out, splits.train, extractor, config.batch_size, workers, bar.update
            )
            images = replace(images, real=real)
    if len(vaes) == 1:
        ((name, vae),) = vaes.items()
        return inspect_autoencoder(
            name, vae, compressions[name], images, config, output_dir, stages
        )
    reports = {}
    for number, (name, vae) in enumerate(vaes.items(), start=1):
        logger.info(f"{number}/{len(vaes)} {name}")
        folder, own = output_dir / name, Stages(3 if images.real is None else 4)
        reports[name] = read_finished(
            folder, identify(vae, images, config.seed)
        ) or inspect_autoencoder(name, vae, compressions[name], images, config, folder, own)
    return compare_autoencoders(vaes, reports, held_out, config.batch_size, output_dir)
