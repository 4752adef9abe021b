"""The latent cache: the posteriors of a data set's images on the disk, sampled at every read.

    manifest.json                      what was encoded, how, and the checksum of every file
    train-000000.safetensors ...       mean, std (n, views, c, h, w) and class_labels (n,)
    validation-000000.safetensors ...  the same for the held-out images, without mirror images

View 0 is the image. View 1, if there is one, is its mirror image: the encoder's latents of a
mirrored image are not the mirrored latents. Any reader of safetensors reads a shard.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import torch

from hf_latent.data.device import to_device
from hf_latent.data.latents.download import download_cache
from hf_latent.data.latents.manifest import condition_shapes, read_manifest
from hf_latent.data.shards import Shards, hash_file
from hf_latent.errors import UserError
from hf_latent.pipeline.conditions import Conditions
from hf_latent.pipeline.encode import LatentPosteriors

READ_AHEAD_BYTES = 2**24


@dataclass(frozen=True)
class LatentBatch:
    """The latents of some images, and the conditions for the denoiser.

    Attributes:
        posteriors: of B images, on the denoiser's scale.
        conditions: named tensors `(B, ...)`; empty without conditions.
    """

    posteriors: LatentPosteriors
    conditions: Conditions

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.posteriors)

    def to(self, device: torch.device) -> "LatentBatch":
        """Copy all tensors to a device; see `to_device`."""
        moments = (to_device(x, device) for x in (self.posteriors.mean, self.posteriors.std))
        conditions = {name: to_device(x, device) for name, x in self.conditions.items()}
        return LatentBatch(LatentPosteriors(*moments), conditions)

    def rows(self, start: int, stop: int) -> "LatentBatch":
        """Return some of the images, as views."""
        conditions = {name: x[start:stop] for name, x in self.conditions.items()}
        return LatentBatch(self.posteriors.rows(start, stop), conditions)


def concatenate(parts: list[LatentBatch]) -> LatentBatch:
    """Join batches with the same conditions."""
    mean = torch.cat([part.posteriors.mean for part in parts])
    std = torch.cat([part.posteriors.std for part in parts])
    names = parts[0].conditions
    conditions = {name: torch.cat([x.conditions[name] for x in parts]) for name in names}
    return LatentBatch(LatentPosteriors(mean, std), conditions)


class LatentSplit:
    """One split of a latent cache, read in any order through memory maps.

    Args:
        name: train or validation.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], name: str):
        """Open no shard yet."""
        self.folder = folder
        self.latent_shape: tuple[int, ...] = tuple(manifest["latent_shape"])
        views = 2 if manifest["mirrored"] and name == "train" else 1
        moments = dict.fromkeys(("mean", "std"), (views, *self.latent_shape))
        self._conditions = condition_shapes(manifest)
        entries = (manifest.get("shards") or {}).items()
        # Of the split's files. In memory the latents take about as many.
        self.stored_bytes: int = sum(x["bytes"] for file, x in entries if file.startswith(name))
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
            mirrored: `(B,)` bool, which mirror images to read instead; None: none.

        Returns:
            Copies in memory, in the order of the indices.
        """
        views = torch.zeros_like(indices) if mirrored is None else mirrored.long()
        names = {"mean": views, "std": views, **dict.fromkeys(self._conditions)}
        found = self._shards.read_named(names, indices)
        posteriors = LatentPosteriors(found.pop("mean").float(), found.pop("std").float())
        return LatentBatch(posteriors, found)

    def read_stored(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read `mean` and `std` `(B, views, c, h, w)` and the conditions, as they are stored."""
        return self._shards.read_named(dict.fromkeys(["mean", "std", *self._conditions]), indices)

    def read_evenly(self, count: int) -> LatentBatch:
        """Read `count` images, evenly spaced, or all if there are fewer."""
        count = min(count, len(self))
        return self.read(torch.arange(count) * len(self) // count)

    def close(self, shard: int) -> None:
        """Unmap a shard, so that its file can be removed."""
        self._shards.close(shard)

    def read_batches(
        self, keys: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
    ) -> Iterator[LatentBatch]:
        """Read batch after batch in a thread, several batches at once and ahead of time.

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

        # One torch thread reads. A second team of OpenMP threads would make those of the training
        # sleep whenever they wait, and a step could take twice as long.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, "read", torch.set_num_threads, (1,)) as thread:
            ahead = thread.submit(read_some)
            wait([ahead])
            torch.set_num_threads(threads)  # for threads that start later
            while batches := ahead.result():
                ahead = thread.submit(read_some)
                yield from batches


class LatentCache:
    """A finished latent cache.

    Args:
        source: a folder, or the id of a data set repository on the Hub, which is downloaded.
        revision: of the repository.

    Raises:
        UserError: if the cache does not exist, is not finished, or a shard is missing or cut short.
            Only `verify` compares the content of the shards.
    """

    def __init__(self, source: str | Path, revision: str | None = None):
        """Read the manifest, and check the length of every shard."""
        self.folder = Path(source)
        if not self.folder.is_dir():
            self.folder = download_cache(str(source), revision)
        self.manifest = read_manifest(self.folder / "manifest.json")
        if not self.manifest.get("shards"):
            raise UserError(
                f"{self.folder} is not finished: run the command that encodes it again, and it "
                "resumes"
            )
        for name, entry in self.manifest["shards"].items():
            check_shard(self.folder / name, entry, checksum=False)
        self.train = LatentSplit(self.folder, self.manifest, "train")
        self.validation = LatentSplit(self.folder, self.manifest, "validation")

    def verify(self, process_index: int = 0, num_processes: int = 1) -> None:
        """Compare every shard with its checksum; several processes share the shards.

        Raises:
            UserError: naming the first damaged shard.
        """
        shards = list(self.manifest["shards"].items())
        for name, entry in shards[process_index::num_processes]:
            check_shard(self.folder / name, entry)


def check_shard(path: Path, entry: dict[str, Any], checksum: bool = True) -> None:
    """Compare a shard's length, and if `checksum` its content, with its entry in the manifest.

    Raises:
        UserError: naming the file, if it is missing or damaged.
    """
    advice = "encode again with the same settings, which makes only that file, or copy it again"
    if path.is_symlink():  # into the Hub's cache: another download would link the same file
        advice = f"remove {path.resolve()}, and the next run downloads it again"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is missing: {advice}") from error
    if size != entry["bytes"]:
        expected = entry["bytes"]
        raise UserError(f"{path} is damaged: it has {size:,} bytes, not {expected:,}; {advice}")
    if checksum and hash_file(path) != entry["sha256"]:
        raise UserError(f"{path} is damaged: its checksum is not that of manifest.json; {advice}")
