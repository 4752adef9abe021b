"""The real images of an evaluation, and their vectors: computed once, kept under a hash."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.shards import Shards, write_shards
from hf_latent.errors import UserError
from hf_latent.evaluation.config import LARGEST_DEFAULT, EvaluateConfig
from hf_latent.evaluation.features.extractors import FeatureExtractor, image_vectors
from hf_latent.evaluation.measures.memorisation import LOCAL_NEIGHBOURS
from hf_latent.evaluation.measures.neighbours import nearest_neighbours
from hf_latent.evaluation.stages import Stages
from hf_latent.models.presets import measure_compression
from hf_latent.output import replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.encode import downsampling_factor

FEWEST_HELD_OUT = 2


@dataclass(frozen=True)
class RealImages:
    """The real images of an evaluation.

    Attributes:
        train: all that were trained on.
        held_out: some that were not.
        reference: places among `train` of the images to compare with.
        other: places of as many others, to compare real images with real ones.
    """

    train: ImageDataset
    held_out: ImageDataset
    reference: torch.Tensor
    other: torch.Tensor

    @classmethod
    def choose(cls, splits: ImageSplits, count: int, seed: int) -> "RealImages":
        """Draw two disjoint sets of `count` training images; at most 10,000 are held out."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(splits.train), generator=generator)
        train = splits.train.view(mirrored=False)
        held_out = splits.validation.evenly_spaced(LARGEST_DEFAULT)
        return cls(train, held_out, order[:count], order[count : 2 * count])

    def subset(self, places: torch.Tensor) -> ImageDataset:
        """Return the training images at some places."""
        return self.train.subset(places.numpy())


def open_real_images(
    config: EvaluateConfig, pipeline: LatentDiffusionPipeline
) -> tuple[ImageSplits, RealImages]:
    """Open the data, and make sure that it fits the model.

    Raises:
        UserError: if the size, the channels or the classes differ, or there are too few images.
    """
    size = pipeline.unet.config.sample_size
    f = downsampling_factor(pipeline.vae)
    height, width = (f * x for x in ((size, size) if isinstance(size, int) else size))
    images = config.images_config((height, width), pipeline.vae.config.in_channels)
    splits = open_images(images, keep_in_memory=False)
    measure_compression(pipeline.vae, splits.image_shape)  # refuses what cannot be encoded
    if splits.image_shape[1:] != (height, width):
        raise UserError(
            f"--resolution {config.resolution}, but the model makes images of {height}x{width}: "
            "leave it out"
        )
    config.check_model(pipeline)
    if pipeline.num_classes not in (None, splits.num_classes):
        raise UserError(
            f"the model has {pipeline.num_classes} classes and {config.data} has "
            f"{splits.num_classes or 'none'}: give the data that it was trained on"
        )
    if len(splits.validation) < FEWEST_HELD_OUT:
        raise UserError(
            f"{config.data} has {len(splits.validation)} held-out image, which is too few: raise "
            "--validation_fraction"
        )
    real = RealImages.choose(splits, config.count(len(splits.train)), config.seed)
    return splits, real


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let another evaluation that needs the same vectors wait, and then read them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_name(f"{folder.name}.lock")):
        yield


def cached_vectors(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    cache_dir: str | Path,
    batch_size: int,
    bar: tqdm | None = None,
    num_workers: int = 0,
) -> Shards:
    """Compute the vectors of a data set, or read those that were computed before.

    Args:
        dataset: without anything random.
        extractor: from images to vectors.
        cache_dir: a folder for each data set and extractor is made in here.
        batch_size: images at a time.
        bar: is told how many images are done.
        num_workers: processes that decode images.

    Returns:
        Shards of `vectors`, `(N, d)` float32, in the data set's order.
    """
    identity = {"images": dataset.identity, "preprocessing": extractor.preprocessing}
    key = hashlib.sha256("\n".join(identity.values()).encode()).hexdigest()[:32]

    @torch.no_grad()
    def make_rows(rows: range) -> dict[str, torch.Tensor]:
        part = torch.utils.data.Subset(dataset, rows)
        vectors = image_vectors(part, extractor, batch_size, num_workers=num_workers)
        return {"vectors": torch.cat(list(vectors))}

    on_rows = (lambda count: None) if bar is None else bar.update
    folder = Path(cache_dir) / key
    with _one_at_a_time(folder):
        return write_shards(folder, len(dataset), make_rows, identity, on_rows)


def cached_neighbours(vectors: Shards, bar: tqdm) -> tuple[torch.Tensor, torch.Tensor]:
    """Find each image's nearest other images in its own set, or read what was found before.

    Args:
        vectors: of `cached_vectors`, of more images than `LOCAL_NEIGHBOURS`.
        bar: is told how many images are done.

    Returns:
        Distances `(N, k)` float32, ascending, and places `(N, k)` int64.
    """
    path = vectors.folder / "neighbours.safetensors"
    with _one_at_a_time(vectors.folder):
        if not path.is_file():
            selection = vectors.select("vectors")
            distances, places = nearest_neighbours(
                selection, selection, LOCAL_NEIGHBOURS, True, bar.update
            )
            with replaced_whole(path) as temporary:
                temporary.write_bytes(save({"distances": distances, "places": places}))
        else:
            bar.update(len(vectors))
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("distances"), file.get_tensor("places")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and run again") from error


def vectors_by_space(
    real: RealImages,
    spaces: dict[str, FeatureExtractor],
    cache_dir: str | Path,
    batch_size: int,
    num_workers: int,
    stages: Stages,
) -> dict[str, dict[str, Shards]]:
    """Compute, or read, the vectors of all real images in each space.

    Args:
        real: the images.
        spaces: extractors by name.
        cache_dir: as of `cached_vectors`.
        batch_size: images at a time.
        num_workers: processes that decode images.
        stages: a stage is added.

    Returns:
        For each space those of `train`, `held_out` and `held_out_mirrored`.
    """
    datasets = {
        "train": real.train,
        "held_out": real.held_out,
        "held_out_mirrored": real.held_out.view(mirrored=True),
    }
    total = len(spaces) * sum(map(len, datasets.values()))
    with stages.stage("real vectors", total) as bar:
        return {
            space: {
                name: cached_vectors(dataset, extractor, cache_dir, batch_size, bar, num_workers)
                for name, dataset in datasets.items()
            }
            for space, extractor in spaces.items()
        }


def identify(real: RealImages, extractor: FeatureExtractor, seed: int) -> dict[str, Any]:
    """Return what makes two reports' figures comparable, or tells that they are not."""
    reference = real.subset(real.reference)
    identity = {
        "num_images": len(reference),
        "reference_fingerprint": reference.fingerprint,
        "preprocessing": f"{reference.preprocessing}; {extractor.preprocessing}",
    }
    digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]
    return identity | {"comparable_if_equal": digest, "seed": seed}
