"""The real images of an evaluation and their vectors, which are computed once and cached."""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import ImageSplits, open_images, with_values_of
from hf_latent.data.images.sources.captions import AUTO
from hf_latent.data.shards import Shards, write_shards
from hf_latent.errors import UserError
from hf_latent.evaluation.config import LARGEST_DEFAULT, ComparisonConfig
from hf_latent.evaluation.features.extractors import FeatureExtractor, image_vectors
from hf_latent.evaluation.measures.memorisation import LOCAL_NEIGHBOURS
from hf_latent.evaluation.measures.neighbours import nearest_neighbours
from hf_latent.evaluation.stages import Stages
from hf_latent.models.presets import measure_compression
from hf_latent.output import replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import downsampling_factor
from hf_latent.pipeline.conditions import has_prompts

FEWEST_HELD_OUT = 2


@dataclass(frozen=True)
class RealImages:
    """The real images of an evaluation.

    Attributes:
        train: all training images.
        held_out: held-out images, at most 10,000 and at most as many as `train`.
        reference: `(n,)` int64, rows of `train` to compare generated images with.
        other: `(n,)` int64, other rows of `train`, to compare real images with real ones.
    """

    train: ImageDataset
    held_out: ImageDataset
    reference: torch.Tensor
    other: torch.Tensor

    @classmethod
    def choose(cls, splits: ImageSplits, count: int, seed: int) -> "RealImages":
        """Draw two disjoint sets of `count` training images."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(splits.train), generator=generator)
        train = splits.train.view(mirrored=False)
        held_out = splits.validation.evenly_spaced(min(LARGEST_DEFAULT, len(train)))
        return cls(train, held_out, order[:count], order[count : 2 * count])

    def subset(self, rows: torch.Tensor) -> ImageDataset:
        """Return some rows of the training images."""
        return self.train.subset(rows.numpy())


def open_real_images(
    config: ComparisonConfig, pipeline: LatentDiffusionPipeline
) -> tuple[ImageSplits, RealImages]:
    """Open the data and check that it fits the model.

    Raises:
        UserError: if the size, the channels or the classes differ, the data has too few images, or
            the model needs captions and the data has none.
    """
    size = pipeline.unet.config.sample_size
    f = downsampling_factor(pipeline.vae)
    height, width = (f * x for x in ((size, size) if isinstance(size, int) else size))
    images = with_values_of(pipeline.vae, config.images_config((height, width)))
    if has_prompts(pipeline.unet) and images.caption_column is None:
        images = replace(images, caption_column=AUTO)
    splits = open_images(images, keep_in_memory=False)
    measure_compression(pipeline.vae, splits.image_shape)  # rejects images it cannot encode
    if splits.image_shape[1:] != (height, width):
        raise UserError(
            f"--resolution {config.resolution}, but the model makes images of {height}x{width}: "
            "leave it out"
        )
    if pipeline.num_classes not in (None, splits.num_classes):
        raise UserError(
            f"the model has {pipeline.num_classes} classes and {config.data} has "
            f"{splits.num_classes or 'none'}: give the data that it was trained on"
        )
    check_held_out(splits, config.data)
    real = RealImages.choose(splits, config.choose_num_images(len(splits.train)), config.seed)
    return splits, real


def check_held_out(splits: ImageSplits, data: str) -> None:
    """Raise UserError if there are too few held-out images to measure on; `data` names them all."""
    if len(splits.validation) < FEWEST_HELD_OUT:
        raise UserError(
            f"{data} has {len(splits.validation)} held-out image, which is too few: raise "
            "--validation_fraction"
        )


def _lock(folder: Path) -> AbstractContextManager[Any]:
    """Return a lock: a second evaluation that needs the same vectors waits and then reads them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(folder.with_name(f"{folder.name}.lock"))


def cached_vectors(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    cache_dir: str | Path,
    batch_size: int,
    bar: tqdm | None = None,
    num_workers: int = 0,
) -> Shards:
    """Compute the vectors of a data set, or read them from the vector cache.

    Args:
        dataset: without random crops or flips.
        cache_dir: the vector cache; it has one folder per data set and extractor.

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
    with _lock(folder):
        return write_shards(folder, len(dataset), make_rows, identity, on_rows)


def cached_neighbours(vectors: Shards, bar: tqdm) -> tuple[torch.Tensor, torch.Tensor]:
    """Find each image's k = `LOCAL_NEIGHBOURS` nearest other images, or read them from the cache.

    Args:
        vectors: from `cached_vectors`, of more than k images.

    Returns:
        Distances `(N, k)` float32, ascending, and places `(N, k)` int64.
    """
    path = vectors.folder / "neighbours.safetensors"
    with _lock(vectors.folder):
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
    """Compute the vectors of all real images in each space, or read them from the vector cache.

    Args:
        spaces: extractors by name.
        cache_dir: the vector cache.

    Returns:
        By space: the vectors of `train`, `held_out` and `held_out_mirrored`.
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


def comparison_figures(real: RealImages, extractor: FeatureExtractor, seed: int) -> dict[str, Any]:
    """Return what a report's figures depend on; `comparable_if_equal` is a hash of it."""
    reference = real.subset(real.reference)
    identity = {
        "num_images": len(reference),
        "reference_fingerprint": reference.fingerprint,
        "preprocessing": f"{reference.preprocessing}; {extractor.preprocessing}",
    }
    digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]
    return identity | {"comparable_if_equal": digest, "seed": seed}
