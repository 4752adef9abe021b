"""Where a denoiser's training has its latents from.

CachedLatents     a latent cache, made beforehand, read at random
EncodedOnce       the same of a cache that is made of the images in the run's folder
StreamedLatents   a latent cache as a stream of shuffled shards, here or on the Hub
EncodedLatents    the images, encoded anew at every step
"""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.flips import is_flipped
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.cache import LatentBatch, LatentCache, concatenate
from hf_latent.data.latents.download import pin_revision
from hf_latent.data.latents.manifest import check_fits
from hf_latent.data.latents.store import ShardStore, open_shard_store
from hf_latent.data.latents.stream import LatentStream, stream_batches
from hf_latent.evaluation.machine import shown_name
from hf_latent.models.frozen import hash_autoencoder
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.run.accelerator import process_rows, raise_everywhere
from hf_latent.training.run.batches import (
    GlobalBatchSampler,
    ProcessRows,
    global_batches,
    ignore_signals,
)
from hf_latent.training.run.folder import describe_counts, open_run_images


@dataclass(frozen=True)
class ReadOptions:
    """How a training reads its latents.

    Attributes:
        rows: which of every global batch this process takes.
        seed: of the order and the flips.
        horizontal_flip: take half of the images mirrored.
        num_workers: processes that read.
        max_held_out: so many held-out images at most, evenly spaced.
    """

    rows: ProcessRows
    seed: int
    horizontal_flip: bool
    num_workers: int
    max_held_out: int


class LatentSource(ABC):
    """The latents of a run.

    Attributes:
        image_shape: `(C, H, W)` of the images.
        id2label: names of the classes; None without classes.
        data: how a report calls the images; None: not known.
        train_images: how many there are to train on.
        held_out_images: how many are held out.
        counts: how many images there are, in words.
        validation_fingerprint: of the held-out images.
        identity: stands for the latents, where they are kept; known once they are there.
        encode_seconds: what encoding took before the first step.
        encoded_images: how many were encoded in that time, mirror images not counted.
    """

    image_shape: tuple[int, int, int]
    id2label: dict[int, str] | None
    data: str | None
    train_images: int
    held_out_images: int
    counts: str
    validation_fingerprint: str
    identity: str | None = None
    encode_seconds: float = 0.0
    encoded_images: int = 0

    @abstractmethod
    def prepare(self, vae: Autoencoder) -> None:
        """Do what must be done before the first step; all processes call it.

        Args:
            vae: frozen, on the accelerator's device.
        """

    @abstractmethod
    def held_out(self) -> LatentBatch:
        """Return the latents of held-out images, on the CPU."""

    @abstractmethod
    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Yield this process's rows of every global batch, from one on, without end."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: what stands for the latents; of images, nothing."""
        return {"latents": self.identity}

    def load_state(self, state: dict[str, Any]) -> None:
        """Compare with a checkpoint's `state`; images have no say, as `--data` has none.

        Raises:
            ValueError: if the checkpoint was made with other latents.
        """
        if None not in (state["latents"], self.identity) and state["latents"] != self.identity:
            raise ValueError("the latents are not those that it was trained with")

    def describe_images(self, splits: ImageSplits, data: str) -> None:
        """Set the attributes by the images."""
        self.image_shape, self.id2label, self.data = splits.image_shape, splits.id2label, data
        self.train_images, self.held_out_images = len(splits.train), len(splits.validation)
        self.counts = describe_counts(splits)
        self.validation_fingerprint = splits.validation_fingerprint

    def describe_cache(self, manifest: dict[str, Any]) -> None:
        """Set the attributes by a latent cache's manifest."""
        channels, height, width = manifest["image_shape"]
        self.image_shape, self.data = (channels, height, width), manifest["data"]
        names = manifest["id2label"]
        self.id2label = names and {int(label): name for label, name in names.items()}
        train, held_out = (manifest["splits"][name] for name in ("train", "validation"))
        self.train_images, self.held_out_images = train["rows"], held_out["rows"]
        self.counts = (
            f"latents of {train['rows']} training images of {self.data or 'a local folder'}, "
            f"{held_out['rows']} held out"
        )
        self.validation_fingerprint = held_out["fingerprint"]
        self.identity = hash_latents(manifest)


def hash_latents(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of what a cache's latents and their order depend on."""
    keys = ("autoencoder_sha256", "splits", "mirrored", "dtype", "shard_rows")
    text = json.dumps([manifest[key] for key in keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class CachedLatents(LatentSource):
    """A latent cache, read at random through memory maps.

    Args:
        cache: made beforehand.
        reading: how it is read.
        accelerator: of the run.
    """

    def __init__(self, cache: LatentCache, reading: ReadOptions, accelerator: Accelerator):
        """Take the attributes from the cache."""
        self.cache, self.reading, self.accelerator = cache, reading, accelerator
        self.describe_cache(cache.manifest)

    def prepare(self, vae: Autoencoder) -> None:
        """Make sure that the cache is undamaged."""
        with raise_everywhere(self.accelerator):
            self.cache.verify(self.accelerator.process_index, self.accelerator.num_processes)

    def held_out(self) -> LatentBatch:
        """Read held-out images, evenly spaced."""
        return self.cache.validation.read_evenly(self.reading.max_held_out)

    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Read the global order's batches."""
        split, reading = self.cache.train, self.reading
        sampler = GlobalBatchSampler(len(split), reading.rows, reading.seed, start_batch)

        def keys() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for batch in count(start_batch):
                epochs, indices = sampler.epochs_and_indices(batch)
                mirrored = None
                if reading.horizontal_flip:
                    flipped = is_flipped(reading.seed, epochs, indices, len(split))
                    mirrored = torch.from_numpy(flipped)
                yield torch.from_numpy(indices), mirrored

        return split.read_batches(keys())


class EncodedOnce(CachedLatents):
    """The images, encoded into a latent cache in the run's folder before the first step.

    Args:
        splits: the images.
        settings: of encoding them.
        replace_other: replace the cache of other images that is there, instead of refusing it.
        reading: how the cache is read.
        accelerator: of the run.
    """

    def __init__(
        self,
        splits: ImageSplits,
        settings: EncodeConfig,
        replace_other: bool,
        reading: ReadOptions,
        accelerator: Accelerator,
    ):
        """Take the attributes from the images."""
        self.reading, self.accelerator = reading, accelerator
        self._splits: ImageSplits | None = splits
        self._settings, self._replace_other = settings, replace_other
        self.describe_images(splits, shown_name(settings.data))

    def prepare(self, vae: Autoencoder) -> None:
        """Encode the images that are not encoded yet."""
        start = time.perf_counter()
        self.cache, self.encoded_images = encode_latents(
            self._settings, self._splits, vae, self.accelerator, self._replace_other
        )
        self.encode_seconds = time.perf_counter() - start
        self.identity = hash_latents(self.cache.manifest)
        self._splits = None


class StreamedLatents(LatentSource):
    """A latent cache as a stream of shuffled shards; of the Hub, few are on the disk at once.

    Args:
        store: where the shards are.
        lanes: places that are read at once.
        buffer_rows: images that are shuffled together.
        reading: how it is read.
        accelerator: of the run.

    Raises:
        UserError: if the lanes do not fit the shards, the batch, the processes or the workers.
    """

    def __init__(
        self,
        store: ShardStore,
        lanes: int,
        buffer_rows: int,
        reading: ReadOptions,
        accelerator: Accelerator,
    ):
        """Take the attributes from the manifest."""
        self._store, self._lanes, self._buffer_rows = store, lanes, buffer_rows
        self.reading, self.accelerator = reading, accelerator
        self.describe_cache(store.manifest)
        self.batches(0)  # what does not fit is refused before there is a folder

    def prepare(self, vae: Autoencoder) -> None:
        """Open the held-out images; of the Hub, all of theirs are downloaded."""
        with self.accelerator.main_process_first():
            self._validation = self._store.open_validation()

    def held_out(self) -> LatentBatch:
        """Read held-out images, evenly spaced."""
        return self._validation.read_evenly(self.reading.max_held_out)

    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Read the stream's batches."""
        rows = self.reading.rows
        stream = LatentStream(
            self._store,
            rows.global_size,
            self.reading.seed,
            self.reading.horizontal_flip,
            start_batch,
            self._lanes,
            self._buffer_rows,
            rows.process_index,
            rows.num_processes,
        )
        return stream_batches(stream, self.reading.num_workers, ignore_signals)


class EncodedLatents(LatentSource):
    """The images themselves, encoded anew at every step.

    Args:
        splits: the images.
        data: how a report calls them.
        reading: how they are read.
    """

    def __init__(self, splits: ImageSplits, data: str, reading: ReadOptions):
        """Take the attributes from the images."""
        self._splits, self.reading = splits, reading
        self.describe_images(splits, data)

    def prepare(self, vae: Autoencoder) -> None:
        """Keep the autoencoder."""
        self._vae = vae

    @torch.no_grad()
    def _encode(self, batch: dict[str, torch.Tensor]) -> LatentBatch:
        images = batch.pop("images").to(self._vae.device)
        return LatentBatch(encode_posteriors(self._vae, images), batch)

    def held_out(self) -> LatentBatch:
        """Encode held-out images, evenly spaced."""
        images = self._splits.validation.evenly_spaced(self.reading.max_held_out)
        loader: DataLoader = DataLoader(images, self.reading.rows.batch_size)
        cpu = torch.device("cpu")
        return concatenate([self._encode(batch).to(cpu) for batch in loader])

    def batches(self, start_batch: int) -> Iterator[LatentBatch]:
        """Encode the global order's batches."""
        train, rows = self._splits.train, self.reading.rows
        seed, workers = self.reading.seed, self.reading.num_workers
        return map(self._encode, global_batches(train, rows, seed, start_batch, workers))


def open_latent_source(
    config: DenoiserConfig,
    accelerator: Accelerator,
    vae: Autoencoder,
    splits: ImageSplits | None = None,
) -> LatentSource:
    """Open what a run's configuration names.

    Args:
        config: of the run.
        accelerator: of the run.
        vae: the autoencoder.
        splits: the images, where they are open already.

    Raises:
        UserError: if it cannot be had, or is not of this run's autoencoder or preprocessing.
    """
    reading = ReadOptions(
        process_rows(config.train_batch_size, accelerator),
        config.seed,
        config.horizontal_flip,
        config.dataloader_num_workers,
        config.max_validation_samples,
    )
    if config.latents is None:
        # Where the latents are kept, each image is read once.
        keep = None if config.encode_every_step else False
        splits = splits or open_run_images(config, accelerator, keep)
        if config.encode_every_step:
            return EncodedLatents(splits, shown_name(config.data), reading)
        images = {x.name: getattr(config, x.name) for x in fields(ImagesConfig)}
        settings = EncodeConfig(
            **images,
            vae=config.vae,
            output_dir=str(Path(config.output_dir) / "latents"),
            dataloader_num_workers=config.dataloader_num_workers,
        )
        return EncodedOnce(splits, settings, config.overwrite_output_dir, reading, accelerator)
    revision = _pin_for_all(config.latents, config.latents_revision, accelerator)
    if config.stream_latents:
        store = open_shard_store(config.latents, revision)
        check_fits(config.latents, store.manifest, config, hash_autoencoder(vae))
        return StreamedLatents(
            store, config.stream_lanes, config.stream_buffer_rows, reading, accelerator
        )
    with accelerator.main_process_first():  # which downloads
        cache = LatentCache(config.latents, revision)
    check_fits(config.latents, cache.manifest, config, hash_autoencoder(vae))
    return CachedLatents(cache, reading, accelerator)


def _pin_for_all(source: str, revision: str | None, accelerator: Accelerator) -> str | None:
    """Return one commit of the Hub for all processes."""
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            revision = pin_revision(source, revision)
    return broadcast_object_list([revision])[0]
