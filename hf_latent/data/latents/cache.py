"""The latent cache: the posteriors of a data set's images on disk, a fresh sample at every read.

    manifest.json                      what was encoded, how, and every file's checksum
    train-000000.safetensors ...       mean, std (n, views, c, h, w) and class_labels (n,)
    validation-000000.safetensors ...  the same of the held-out images, without mirror images

View 0 is the image, view 1, where there is one, its mirror image encoded: a mirrored latent is not
the latent of the mirrored image. Any safetensors reader reads a shard.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.latents.download import download_cache
from hf_latent.data.latents.manifest import condition_shapes, read_manifest
from hf_latent.data.shards import Shards, hash_file
from hf_latent.errors import UserError
from hf_latent.pipeline.conditions import Conditions
from hf_latent.pipeline.encode import LatentPosteriors

READ_AHEAD_BYTES = 2**24


@dataclass(frozen=True)
class LatentBatch:
    """The latents of some images, and what a denoiser is told of the images.

    Attributes:
        posteriors: of B images, on the denoiser's scale.
        conditions: named tensors, the batch first; empty if there are none.
    """

    posteriors: LatentPosteriors
    conditions: Conditions

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.posteriors)

    def to(self, device: torch.device) -> "LatentBatch":
        """Move all to a device."""
        conditions = {name: x.to(device) for name, x in self.conditions.items()}
        return LatentBatch(self.posteriors.to(device), conditions)

    def rows(self, start: int, stop: int) -> "LatentBatch":
        """Return some of the images, as views."""
        conditions = {name: x[start:stop] for name, x in self.conditions.items()}
        return LatentBatch(self.posteriors.rows(start, stop), conditions)


def concatenate(parts: list[LatentBatch]) -> LatentBatch:
    """Put several batches after one another; all have the same conditions."""
    posteriors = [part.posteriors for part in parts]
    return LatentBatch(
        LatentPosteriors(
            torch.cat([x.mean for x in posteriors]), torch.cat([x.std for x in posteriors])
        ),
        {name: torch.cat([x.conditions[name] for x in parts]) for name in parts[0].conditions},
    )


class LatentSplit:
    """The images of one split of a cache, read at random through memory maps.

    Args:
        folder: of the cache.
        manifest: of the cache.
        name: train or validation.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], name: str):
        """Open nothing yet."""
        self.folder, self.name = folder, name
        self.latent_shape: tuple[int, ...] = tuple(manifest["latent_shape"])
        views = 2 if manifest["mirrored"] and name == "train" else 1
        moments = dict.fromkeys(("mean", "std"), (views, *self.latent_shape))
        self._conditions = condition_shapes(manifest)
        self._shards = Shards(
            folder,
            manifest["splits"][name]["rows"],
            manifest["shard_rows"],
            f"{name}-",
            moments | self._conditions,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._shards)

    def read(self, indices: torch.Tensor, mirrored: torch.Tensor | None = None) -> LatentBatch:
        """Read the latents of some images.

        Args:
            indices: `(B,)` int64 in any order, at least one.
            mirrored: `(B,)` bool: take the mirror image's; None: of none.

        Returns:
            Copies in memory, in the order of the indices.
        """
        views = torch.zeros_like(indices) if mirrored is None else mirrored.long()
        names = {"mean": views, "std": views, **dict.fromkeys(self._conditions)}
        read = self._shards.read_named(names, indices)
        posteriors = LatentPosteriors(read.pop("mean").float(), read.pop("std").float())
        return LatentBatch(posteriors, read)

    def read_evenly(self, count: int) -> LatentBatch:
        """Read `count` images, evenly spaced, or all if there are fewer."""
        count = min(count, len(self))
        return self.read(torch.arange(count) * len(self) // count)

    def close(self, shard: int) -> None:
        """Give up the map of a shard, so that its file can be removed."""
        self._shards.close(shard)

    def read_batches(
        self, keys: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
    ) -> Iterator[LatentBatch]:
        """Read batch after batch, ahead of time: a thread reads several at once, shard by shard.

        Args:
            keys: `indices` and `mirrored` of each batch, as for `read`; may be endless.
        """
        keys = iter(keys)
        shapes = [self.latent_shape, self.latent_shape, *self._conditions.values()]
        row_bytes = 4 * sum(torch.Size(shape).numel() for shape in shapes)

        def read_some() -> list[LatentBatch]:
            first = next(keys, None)
            if first is None:
                return []
            several = max(1, READ_AHEAD_BYTES // (row_bytes * len(first[0])))
            batches = [first, *islice(keys, several - 1)]
            flags = [mirrored for _, mirrored in batches if mirrored is not None]
            indices = torch.cat([indices for indices, _ in batches])
            block = self.read(indices, torch.cat(flags) if flags else None)
            ends = list(accumulate(len(indices) for indices, _ in batches))
            return [block.rows(*ends) for ends in pairwise([0, *ends])]

        # With one torch thread: when a second thread has a team of OpenMP threads, those of the
        # training go to sleep wherever they wait, and a step takes up to twice as long.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, "read", torch.set_num_threads, (1,)) as thread:
            ahead = thread.submit(read_some)
            wait([ahead])
            torch.set_num_threads(threads)  # what threads that are made later begin with
            while batches := ahead.result():
                ahead = thread.submit(read_some)
                yield from batches


class LatentCache:
    """A whole latent cache.

    Args:
        source: a folder, or the id of a data set repository on the Hub, which is downloaded.
        revision: of the repository.

    Raises:
        UserError: in one line that names the file, if it is not there, not finished, or a shard is
            missing or cut short. `verify` checks the content of the shards too.
    """

    def __init__(self, source: str | Path, revision: str | None = None):
        """Read the manifest, and look whether every shard is there in its full length."""
        self.folder = Path(source)
        if not self.folder.is_dir():
            self.folder = download_cache(str(source), revision)
        self.manifest = read_manifest(self.folder / "manifest.json")
        if not self.manifest.get("shards"):
            raise UserError(
                f"{self.folder} is not finished: run the command that encodes it again, it goes on "
                "where it stopped"
            )
        for name, shard in self.manifest["shards"].items():
            check_length(self.folder / name, shard)
        self.train = LatentSplit(self.folder, self.manifest, "train")
        self.validation = LatentSplit(self.folder, self.manifest, "validation")

    def verify(self, process_index: int = 0, num_processes: int = 1) -> None:
        """Compare every shard with its checksum; of several processes each takes its share.

        Raises:
            UserError: naming the first shard that is not what was written.
        """
        shards = list(self.manifest["shards"].items())
        for name, shard in shards[process_index::num_processes]:
            check_content(self.folder / name, shard)


def check_length(path: Path, shard: dict[str, Any]) -> None:
    """Make sure that a shard is there, as long as its manifest says.

    Raises:
        UserError: naming the file.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is missing: {_mend(path)}") from error
    if size != shard["bytes"]:
        raise UserError(
            f"{path} is damaged: it has {size:,} bytes, and {shard['bytes']:,} were written; "
            f"{_mend(path)}"
        )


def check_content(path: Path, shard: dict[str, Any]) -> None:
    """Make sure that a shard is what was written, by its checksum.

    Raises:
        UserError: naming the file.
    """
    check_length(path, shard)
    if hash_file(path) != shard["sha256"]:
        raise UserError(
            f"{path} is damaged: its checksum is not the one in manifest.json; {_mend(path)}"
        )


def _mend(path: Path) -> str:
    if path.is_symlink():  # of the Hub's cache, which would link the same file again
        return f"remove {path.resolve()}, and the next run downloads it again"
    return (
        "encode again with the same settings, which makes that file only, or get it again where "
        "the cache came from"
    )
