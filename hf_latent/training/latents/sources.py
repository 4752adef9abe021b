"""Where a denoiser's training has its latents from.

CachedLatents     a latent cache, made beforehand or in the run's folder, read at random
StreamedLatents   a latent cache as a stream of shuffled shards, here or on the Hub
EncodedLatents    the images, encoded anew at every step
"""

import time
from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.flips import is_flipped
from hf_latent.data.images.open import ImageSplits
from hf_latent.data.latents.cache import LatentCache, LatentPosteriors, LatentSplit, concatenate
from hf_latent.data.latents.download import pin_revision
from hf_latent.data.latents.manifest import check_fits
from hf_latent.data.latents.store import open_shard_store
from hf_latent.data.latents.stream import LatentStream, stream_batches
from hf_latent.models.frozen import hash_autoencoder
from hf_latent.models.load import Autoencoder
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.latents.posteriors import encode_batch
from hf_latent.training.latents.source import LatentSource
from hf_latent.training.run.accelerator import process_rows, together
from hf_latent.training.run.batches import GlobalBatchSampler, ignore_signals


class CachedLatents(LatentSource):
    """A latent cache, read at random through memory maps.

    Args:
        config: of the run; without `latents`, the images are encoded into its folder.
        accelerator: of the run.
        vae: the autoencoder.
        splits: the images, where they are open already.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        accelerator: Accelerator,
        vae: Autoencoder,
        splits: ImageSplits | None,
    ):
        """Open the cache, or the images that it will be made of."""
        super().__init__(config, accelerator)
        self._splits: ImageSplits | None = None
        if config.latents:
            revision = _pin_for_all(config, accelerator)
            with accelerator.main_process_first():  # which downloads
                self._cache = LatentCache(config.latents, revision)
            check_fits(config.latents, self._cache.manifest, config, hash_autoencoder(vae))
            self.take_manifest(self._cache.manifest)
        else:
            self._splits = self.take_images(splits)

    def prepare(self, vae: Autoencoder) -> None:
        """Encode the images, if they are not; or make sure that the cache is undamaged."""
        if self._splits is None:
            with together(self.accelerator):
                self._cache.verify(self.accelerator.process_index, self.accelerator.num_processes)
            return
        start = time.perf_counter()
        images = {x.name: getattr(self.config, x.name) for x in fields(ImagesConfig)}
        settings = EncodeConfig(
            **images,
            vae=self.config.vae,
            output_dir=str(Path(self.config.output_dir) / "latents"),
            dataloader_num_workers=self.config.dataloader_num_workers,
        )
        self._cache, self.encoded_images = encode_latents(
            settings, self._splits, vae, self.accelerator, self.config.overwrite_output_dir
        )
        self.encode_seconds = time.perf_counter() - start
        self.take_manifest(self._cache.manifest)
        self._splits = None

    def held_out(self) -> LatentPosteriors:
        """Read held-out images, evenly spaced."""
        return _read_evenly(self._cache.validation, self.config.max_validation_samples)

    def batches(self, start_batch: int) -> Iterator[LatentPosteriors]:
        """Read the global order's batches."""
        split, config = self._cache.train, self.config
        sampler = GlobalBatchSampler(
            len(split), process_rows(config, self.accelerator), config.seed, start_batch
        )

        def keys() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for batch in count(start_batch):
                epochs, indices = sampler.places(batch)
                mirrored = None
                if config.horizontal_flip:
                    flipped = is_flipped(config.seed, epochs, indices, len(split))
                    mirrored = torch.from_numpy(flipped)
                yield torch.from_numpy(indices), mirrored

        return split.read_batches(keys())


class StreamedLatents(LatentSource):
    """A latent cache as a stream of shuffled shards; of the Hub, few are on the disk at once.

    Args:
        config: of the run.
        accelerator: of the run.
        vae: the autoencoder.
    """

    def __init__(self, config: DenoiserConfig, accelerator: Accelerator, vae: Autoencoder):
        """Read the manifest."""
        super().__init__(config, accelerator)
        assert config.latents is not None
        self._store = open_shard_store(config.latents, _pin_for_all(config, accelerator))
        check_fits(config.latents, self._store.manifest, config, hash_autoencoder(vae))
        self.take_manifest(self._store.manifest)
        self.batches(0)  # what does not fit is refused before there is a folder

    def prepare(self, vae: Autoencoder) -> None:
        """Open the held-out images; of the Hub, all of theirs are downloaded."""
        with self.accelerator.main_process_first():
            self._validation = self._store.open_validation()

    def held_out(self) -> LatentPosteriors:
        """Read held-out images, evenly spaced."""
        return _read_evenly(self._validation, self.config.max_validation_samples)

    def batches(self, start_batch: int) -> Iterator[LatentPosteriors]:
        """Read the stream's batches."""
        config, rows = self.config, process_rows(self.config, self.accelerator)
        stream = LatentStream(
            self._store,
            rows.global_size,
            config.seed,
            config.horizontal_flip,
            start_batch,
            config.stream_lanes,
            config.stream_buffer_rows,
            rows.process_index,
            rows.num_processes,
        )
        return stream_batches(stream, config.dataloader_num_workers, ignore_signals)


class EncodedLatents(LatentSource):
    """The images themselves, encoded anew at every step.

    Args:
        config: of the run.
        accelerator: of the run.
        splits: the images, where they are open already.
    """

    def __init__(
        self, config: DenoiserConfig, accelerator: Accelerator, splits: ImageSplits | None
    ):
        """Open the images."""
        super().__init__(config, accelerator)
        self._splits = self.take_images(splits)

    def prepare(self, vae: Autoencoder) -> None:
        """Keep the autoencoder."""
        self._vae = vae

    @torch.no_grad()
    def _encode(self, batch: dict[str, torch.Tensor]) -> LatentPosteriors:
        images = batch["images"].to(self.accelerator.device)
        return LatentPosteriors(*encode_batch(self._vae, images), batch.get("class_labels"))

    def held_out(self) -> LatentPosteriors:
        """Encode held-out images, evenly spaced."""
        images = self._splits.validation.evenly_spaced(self.config.max_validation_samples)
        loader: DataLoader = DataLoader(images, self.config.train_batch_size)
        cpu = torch.device("cpu")
        return concatenate([self._encode(batch).to(cpu) for batch in loader])

    def batches(self, start_batch: int) -> Iterator[LatentPosteriors]:
        """Encode the global order's batches."""
        config, train = self.config, self._splits.train
        sampler = GlobalBatchSampler(
            len(train), process_rows(config, self.accelerator), config.seed, start_batch
        )
        loader: DataLoader = DataLoader(
            train,
            batch_sampler=sampler,
            num_workers=config.dataloader_num_workers,
            worker_init_fn=ignore_signals,
        )
        return map(self._encode, loader)


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
    if config.encode_every_step:
        return EncodedLatents(config, accelerator, splits)
    if config.stream_latents:
        return StreamedLatents(config, accelerator, vae)
    return CachedLatents(config, accelerator, vae, splits)


def _pin_for_all(config: DenoiserConfig, accelerator: Accelerator) -> str | None:
    """Return one commit of the Hub for all processes."""
    assert config.latents is not None
    revision = config.latents_revision
    with together(accelerator):
        if accelerator.is_main_process:
            revision = pin_revision(config.latents, revision)
    return broadcast_object_list([revision])[0]


def _read_evenly(split: LatentSplit, most: int) -> LatentPosteriors:
    chosen = min(most, len(split))
    return split.read(torch.arange(chosen) * len(split) // chosen)
