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
from hf_latent.data.latents.manifest import hash_file, read_manifest
from hf_latent.data.latents.shards import Shards
from hf_latent.errors import UserError

READ_AHEAD_BYTES = 2**24


@dataclass(frozen=True)
class LatentPosteriors:
    """The posteriors of some images, on the denoiser's scale.

    Attributes:
        mean: `(B, c, h, w)` float32.
        std: `(B, c, h, w)` float32: the posterior's deviation.
        class_labels: `(B,)` int64, or None.
    """

    mean: torch.Tensor
    std: torch.Tensor
    class_labels: torch.Tensor | None = None

    @property
    def var(self) -> torch.Tensor:
        """The posterior's variance, `(B, c, h, w)`."""
        return self.std.square()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.mean)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Draw latents `(B, c, h, w)` from the posteriors, given standard normal noise."""
        return torch.addcmul(self.mean, self.std, noise)

    def to(self, device: torch.device) -> "LatentPosteriors":
        """Move all to a device."""
        labels = self.class_labels
        return LatentPosteriors(
            self.mean.to(device),
            self.std.to(device),
            None if labels is None else labels.to(device),
        )

    def rows(self, start: int, stop: int) -> "LatentPosteriors":
        """Return some of the images, as views."""
        labels = self.class_labels
        return LatentPosteriors(
            self.mean[start:stop],
            self.std[start:stop],
            None if labels is None else labels[start:stop],
        )


def concatenate(parts: list[LatentPosteriors]) -> LatentPosteriors:
    """Put the posteriors of several sets of images after one another."""
    labels = [x.class_labels for x in parts if x.class_labels is not None]
    return LatentPosteriors(
        torch.cat([x.mean for x in parts]),
        torch.cat([x.std for x in parts]),
        torch.cat(labels) if labels else None,
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
        rows = manifest["splits"][name]["rows"]
        self.name = name
        self.latent_shape: tuple[int, ...] = tuple(manifest["latent_shape"])
        self._labelled = manifest["id2label"] is not None
        views = 2 if manifest["mirrored"] and name == "train" else 1
        moments = (views, *self.latent_shape)
        self._shards = Shards(
            folder,
            {"rows": rows, "shard_rows": manifest["shard_rows"]},
            f"{name}-",
            {"mean": moments, "std": moments, "class_labels": ()},
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._shards)

    def read(self, indices: torch.Tensor, mirrored: torch.Tensor | None = None) -> LatentPosteriors:
        """Read the posteriors of some images.

        Args:
            indices: `(B,)` int64 in any order, at least one.
            mirrored: `(B,)` bool: take the mirror image's; None: of none.

        Returns:
            Copies in memory, in the order of the indices.
        """
        views = torch.zeros_like(indices) if mirrored is None else mirrored.long()
        names: dict[str, torch.Tensor | None] = {"mean": views, "std": views}
        if self._labelled:
            names["class_labels"] = None
        read = self._shards.read_named(names, indices)
        mean, std = read["mean"].float(), read["std"].float()
        return LatentPosteriors(mean, std, read.get("class_labels"))

    def close(self, shard: int) -> None:
        """Give up the map of a shard, so that its file can be removed."""
        self._shards.close(shard)

    def read_batches(
        self, keys: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
    ) -> Iterator[LatentPosteriors]:
        """Read batch after batch, ahead of time: a thread reads several at once, shard by shard.

        Args:
            keys: `indices` and `mirrored` of each batch, as for `read`; may be endless.
        """
        keys = iter(keys)
        row_bytes = 8 * torch.Size(self.latent_shape).numel()

        def read_some() -> list[LatentPosteriors]:
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
            missing or cut short. `verify` tells whether the content is what was written.
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
