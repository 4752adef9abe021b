"""The sources of a denoiser's latents.

CachedLatents     an existing latent cache, read in random order
EncodedOnce       images, encoded into a latent cache in the run's folder before the first step
StreamedLatents   a latent cache as a stream of shuffled shards, local or on the Hub
EncodedLatents    images, encoded again at every step
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from hf_latent.data.device import to_device
from hf_latent.data.images.captions import CaptionTexts
from hf_latent.data.images.config import select_image_settings
from hf_latent.data.images.flips import is_flipped
from hf_latent.data.images.open import ImageSplits, with_values_of
from hf_latent.data.latents.cache import LatentBatch, LatentCache, concatenate
from hf_latent.data.latents.download import pin_revision
from hf_latent.data.latents.manifest import check_fits, hash_latents, read_manifest
from hf_latent.data.latents.resident import ResidentSplit, fits_on_device
from hf_latent.data.latents.store import ShardStore, open_shard_store
from hf_latent.data.latents.stream import LatentStream, stream_batches
from hf_latent.evaluation.machine import shown_name
from hf_latent.hub.card.text import one_line
from hf_latent.models.frozen import hash_autoencoder
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.latents.files import cache_manifest
from hf_latent.training.run.accelerator import (
    first_process_first,
    process_rows,
    raise_everywhere,
)
from hf_latent.training.run.batches import (
    GlobalBatchSampler,
    ProcessRows,
    global_batches,
    init_reader,
)
from hf_latent.training.run.folder import open_run_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadOptions:
    """How a training reads its latents.

    Attributes:
        rows: the rows of every global batch that this process takes.
        seed: decides the order and the flips.
        horizontal_flip: mirror half of the images.
        num_workers: number of reading processes.
        max_held_out: the highest number of held-out images, which are evenly spaced.
        on_device: whether to keep a cache on the device that trains; auto: if it fits.
    """

    rows: ProcessRows
    seed: int
    horizontal_flip: bool
    num_workers: int
    max_held_out: int
    on_device: bool | Literal["auto"]


class LatentSource(ABC):
    """The latents of a run.

    Attributes:
        image_shape: `(C, H, W)` of the images.
        id2label: names of the classes; None without classes.
        captions: the distinct captions; None without captions.
        data: name of the images in reports; None if unknown.
        train_images: number of training images.
        held_out_images: number of held-out images.
        options: how a training reads the latents.
        summary: lines about the data, for config.yaml.
        data_figures: of the data, for reports; none of a latent cache.
        validation_fingerprint: fingerprint of the held-out images.
        identity: hash of the stored latents; None if they are not stored.
        encode_seconds: duration of the encoding before the first step.
        encoded_images: number of images encoded in that time, without mirror images.
    """

    image_shape: tuple[int, int, int]
    id2label: dict[int, str] | None
    captions: CaptionTexts | None
    data: str | None
    train_images: int
    held_out_images: int
    options: ReadOptions
    summary: list[str]
    data_figures: dict[str, Any]
    validation_fingerprint: str
    identity: str | None = None
    encode_seconds: float = 0.0
    encoded_images: int = 0

    def prepare(self, vae: Autoencoder) -> None:
        """Prepare the first step, with a frozen autoencoder on the accelerator's device.

        All processes call it, after the run's folder is started. Stored latents are checked
        earlier, when their source is made, so that damaged ones leave the folder as it was.
        """
        self._vae = vae

    @abstractmethod
    def held_out(self) -> LatentBatch:
        """Return the latents of held-out images, on the CPU."""

    @abstractmethod
    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Yield this process's rows of every global batch from `start_batch` on, without end."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"latents": self.identity}

    def load_state(self, state: dict[str, Any]) -> None:
        """Compare the stored latents, if there are any, with a checkpoint's.

        Raises:
            ValueError: if the checkpoint was made with other latents.
        """
        if None not in (state["latents"], self.identity) and state["latents"] != self.identity:
            raise ValueError("the latents are not those that it was trained with")

    def _set_from_images(self, splits: ImageSplits, data: str) -> None:
        self.image_shape, self.id2label, self.data = splits.image_shape, splits.id2label, data
        self.captions = splits.captions
        self.train_images, self.held_out_images = len(splits.train), len(splits.validation)
        self.summary, self.data_figures = splits.summary.lines(), splits.summary.figures()
        self.validation_fingerprint = splits.validation_fingerprint

    def _set_from_manifest(self, manifest: dict[str, Any]) -> None:
        channels, height, width = manifest["image_shape"]
        self.image_shape, self.data = (channels, height, width), manifest["data"]
        names = manifest["id2label"]
        self.id2label = names and {int(label): name for label, name in names.items()}
        self.captions = None
        if (captions := manifest["captions"]) is not None:
            self.captions = CaptionTexts(tuple(captions["texts"]), captions["alternatives"])
        train, held_out = (manifest["splits"][name] for name in ("train", "validation"))
        self.train_images, self.held_out_images = train["rows"], held_out["rows"]
        line = one_line(
            f"latents of {train['rows']} training images of {self.data or 'a local folder'}, "
            f"{held_out['rows']} held out"
        )
        logger.info(line)
        if self.held_out_images < self.options.max_held_out:
            logger.info("fewer held out than --max_validation_samples: all of them are used")
        if manifest["mirrored"] and not self.options.horizontal_flip:
            logger.warning("the cache has mirror images too; --horizontal_flip true reads them")
        self.summary, self.data_figures = [line], {}
        self.validation_fingerprint = held_out["fingerprint"]
        self.identity = hash_latents(manifest)


class CachedLatents(LatentSource):
    """An existing latent cache, read in random order through memory maps."""

    def __init__(self, cache: LatentCache, options: ReadOptions, accelerator: Accelerator):
        """Set the attributes from the cache, and check that it is not damaged."""
        self.cache, self.options, self.accelerator = cache, options, accelerator
        self._set_from_manifest(cache.manifest)
        with raise_everywhere(accelerator):
            cache.verify(accelerator.process_index, accelerator.num_processes)

    def held_out(self) -> LatentBatch:
        """Read held-out images, evenly spaced."""
        return self.cache.validation.read_evenly(self.options.max_held_out)

    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Read batches in the global order."""
        split, seed, device = self.cache.train, self.options.seed, self.accelerator.device
        sampler = GlobalBatchSampler(len(split), self.options.rows, seed)

        def keys() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for batch in count(start_batch):
                epochs, indices = sampler.epochs_and_indices(batch)
                mirrored = None
                if self.options.horizontal_flip:
                    mirrored = torch.from_numpy(is_flipped(seed, epochs, indices, len(split)))
                yield torch.from_numpy(indices), mirrored

        on_device = self.options.on_device
        if not (fits_on_device(split, device) if on_device == "auto" else on_device):
            return split.read_batches(keys())
        logger.info(f"{len(split):,} latents are kept on {device}: {split.stored_bytes:,} bytes")
        resident = ResidentSplit(split, device)
        return (resident.read(*key) for key in keys())


class EncodedOnce(CachedLatents):
    """Images, encoded into a latent cache in the run's folder before the first step.

    Args:
        settings: how to encode them.
        replace_other: replace an existing cache of other images instead of refusing it.
        options: how to read the cache.
        vae: the autoencoder that `prepare` will get.
    """

    def __init__(
        self,
        splits: ImageSplits,
        settings: EncodeConfig,
        replace_other: bool,
        options: ReadOptions,
        accelerator: Accelerator,
        vae: Autoencoder,
    ):
        """Set the attributes from the images."""
        self.options, self.accelerator = options, accelerator
        # What the cache will be, so that a checkpoint of other latents is refused before encoding.
        self.identity = hash_latents(cache_manifest(settings, splits, vae))
        self._splits: ImageSplits | None = splits
        self._settings, self._replace_other = settings, replace_other
        self._set_from_images(splits, shown_name(settings.data))

    def prepare(self, vae: Autoencoder) -> None:
        """Encode the images that are not encoded yet.

        A started cache keeps its number of held-out images if it has enough, or if the run is
        resumed.
        """
        start = time.perf_counter()
        settings, manifest = self._settings, Path(self._settings.output_dir) / "manifest.json"
        if manifest.exists():
            rows = read_manifest(manifest)["splits"]["validation"]["rows"]
            wanted = min(self.options.max_held_out, self.held_out_images)
            if rows >= wanted or not self._replace_other:
                settings = replace(settings, max_validation_samples=rows)
                if rows < wanted:
                    logger.warning(
                        f"--max_validation_samples {self.options.max_held_out} has no effect: "
                        f"{settings.output_dir} has {rows:,} held-out images"
                    )
        self.cache, self.encoded_images = encode_latents(
            settings, self._splits, vae, self.accelerator, self._replace_other
        )
        self.encode_seconds = time.perf_counter() - start
        self._splits = None


class StreamedLatents(LatentSource):
    """A latent cache as a stream of shuffled shards. Few shards of the Hub are on disk at once.

    Args:
        store: the shards, local or on the Hub.
        lanes: number of places that are read at once.
        buffer_rows: number of images that are shuffled together.
        options: how to read it.

    Raises:
        UserError: if the lanes do not fit the shards, the batch, the processes or the workers.
    """

    def __init__(
        self,
        store: ShardStore,
        lanes: int,
        buffer_rows: int,
        options: ReadOptions,
        accelerator: Accelerator,
    ):
        """Set the attributes from the manifest, and open the held-out latents.

        Held-out latents on the Hub are all downloaded.
        """
        self._store, self._lanes, self._buffer_rows = store, lanes, buffer_rows
        self.options, self.accelerator = options, accelerator
        self._set_from_manifest(store.manifest)
        self.batches(0)  # raises errors before the run's folder is made
        with first_process_first(accelerator):
            self._validation = store.open_validation()

    def held_out(self) -> LatentBatch:
        """Read held-out images, evenly spaced."""
        return self._validation.read_evenly(self.options.max_held_out)

    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Read the stream's batches."""
        rows = self.options.rows
        stream = LatentStream(
            self._store,
            rows.global_size,
            self.options.seed,
            self.options.horizontal_flip,
            start_batch,
            self._lanes,
            self._buffer_rows,
            rows.process_index,
            rows.num_processes,
        )
        return stream_batches(stream, self.options.num_workers, init_reader)


class EncodedLatents(LatentSource):
    """Images, encoded again at every step; `data` is their name in reports."""

    def __init__(self, splits: ImageSplits, data: str, options: ReadOptions):
        """Set the attributes from the images."""
        self._splits, self.options = splits, options
        self._set_from_images(splits, data)

    @torch.no_grad()
    def _encode(self, batch: dict[str, torch.Tensor]) -> LatentBatch:
        images = to_device(batch.pop("images"), self._vae.device)
        return LatentBatch(encode_posteriors(self._vae, images), batch)

    def held_out(self) -> LatentBatch:
        """Encode held-out images, evenly spaced."""
        images = self._splits.validation.evenly_spaced(self.options.max_held_out)
        loader: DataLoader = DataLoader(images, self.options.rows.batch_size)
        cpu = torch.device("cpu")
        return concatenate([self._encode(batch).to(cpu) for batch in loader])

    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Encode batches in the global order."""
        options = self.options
        images = global_batches(
            self._splits.train, options.rows, options.seed, start_batch, options.num_workers
        )
        return map(self._encode, images)


def open_latent_source(
    config: DenoiserConfig,
    accelerator: Accelerator,
    vae: Autoencoder,
    splits: ImageSplits | None = None,
) -> LatentSource:
    """Open the source of latents that a run's configuration names.

    Args:
        splits: the images, if they are open already.

    Raises:
        UserError: if the images or the cache cannot be opened, or the cache was made with another
            autoencoder or preprocessing.
    """
    options = ReadOptions(
        process_rows(config.train_batch_size, accelerator),
        config.seed,
        config.horizontal_flip,
        config.dataloader_num_workers,
        config.max_validation_samples,
        config.latents_on_device,
    )
    config = with_values_of(vae, config)
    if config.latents is None:
        # Images that are encoded once are read once.
        keep = None if config.encode_every_step else False
        splits = splits or open_run_images(config, accelerator, keep)
        if config.encode_every_step:
            return EncodedLatents(splits, shown_name(config.data), options)
        settings = EncodeConfig(
            **select_image_settings(config),
            vae=config.vae,
            output_dir=str(Path(config.output_dir) / "latents"),
            dataloader_num_workers=config.dataloader_num_workers,
            max_validation_samples=config.max_validation_samples,
        )
        overwrite = config.overwrite_output_dir
        return EncodedOnce(splits, settings, overwrite, options, accelerator, vae)
    with raise_everywhere(accelerator):
        revision = config.latents_revision
        if accelerator.is_main_process:
            revision = pin_revision(config.latents, revision)
    revision = broadcast_object_list([revision])[0]  # all processes read the same commit
    if config.stream_latents:
        store = open_shard_store(config.latents, revision)
        check_fits(config.latents, store.manifest, config, hash_autoencoder(vae))
        return StreamedLatents(
            store, config.stream_lanes, config.stream_buffer_rows, options, accelerator
        )
    with first_process_first(accelerator):  # it downloads the cache
        cache = LatentCache(config.latents, revision)
    check_fits(config.latents, cache.manifest, config, hash_autoencoder(vae))
    return CachedLatents(cache, options, accelerator)
