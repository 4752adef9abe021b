"""Tensors of many images on disk: written a shard at a time, read through memory maps.

    manifest.json                      what the rows depend on and, once all shards are there,
                                       every shard's number of rows, length and checksum
    000000.safetensors ...             named tensors with one row an image
    000000.entry.json ...              the same of one shard, until all are there

Memory stays flat in the number of images. A killed run goes on: what has its entry, and its
checksum, is not made again. Several processes can write different shards of one folder.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole, write_json

SHARD_ROWS = 1000


class Shards:
    """Named tensors with one row an image, in files of a fixed number of rows.

    A shard that was read stays mapped, so that it is opened once; that takes address space, and no
    memory that the system could not take back. A pickled copy opens its own.

    Args:
        folder: of the shards.
        num_rows: how many rows in all.
        shard_rows: rows of a shard; the last one may have fewer.
        prefix: of the shards' names.
        row_shapes: shape of a row of each tensor, by name; what is not named may have any.
    """

    def __init__(
        self,
        folder: str | Path,
        num_rows: int,
        shard_rows: int,
        prefix: str = "",
        row_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ):
        """Open no shard yet."""
        self.folder, self._row_shapes = Path(folder), row_shapes or {}
        self._length, self._shard_rows = num_rows, shard_rows
        self._names = list(shard_ranges(num_rows, shard_rows, prefix))
        self._open: dict[tuple[int, str], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is mapped out of a pickle."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def _map(self, number: int, name: str) -> torch.Tensor:
        path = self.folder / self._names[number]
        try:
            with safe_open(path, "pt") as file:
                tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it, and run again") from error
        rows = min(self._shard_rows, len(self) - number * self._shard_rows)
        shape = (rows, *self._row_shapes.get(name, tensor.shape[1:]))
        if tensor.shape != shape:
            raise UserError(
                f"{path} is not what its manifest.json says: {name} has shape "
                f"{tuple(tensor.shape)}, not {shape}; remove it, and run again"
            )
        return tensor

    def _shard(self, number: int, name: str) -> torch.Tensor:
        if (number, name) not in self._open:
            self._open[number, name] = self._map(number, name)
        return self._open[number, name]

    def close(self, number: int) -> None:
        """Give up the map of a shard; it is opened anew when it is read again."""
        for key in [key for key in self._open if key[0] == number]:
            del self._open[key]

    def select(self, name: str, rows: torch.Tensor | None = None) -> "Selection":
        """Return some rows of a tensor, to be read block by block.

        Args:
            name: of the tensor.
            rows: `(n,)` int64, which rows and in which order; None: all.
        """
        return Selection(self, name, rows)

    def read_in_order(self, name: str) -> Iterator[torch.Tensor]:
        """Read a tensor shard by shard, without a copy: views of the mapped files."""
        for number in range(len(self._names)):
            yield self._map(number, name)  # not kept: what is yielded may be changed

    def read(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Read some rows of one tensor, as `read_named`."""
        return self.read_named({name: None}, rows)[name]

    def read_named(
        self, names: Mapping[str, torch.Tensor | None], rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Read some rows of several tensors at once.

        Args:
            names: of the tensors; with each, `(n,)` int64: of each row, which entry of its first
                dimension; None: whole rows.
            rows: `(n,)` int64 in any order, at least one, each below the length.

        Returns:
            By name `(n, ...)`, copies in memory.
        """
        # In the order of the files, each shard's rows at once, then in the order asked for. With
        # numpy: so small copies are not worth torch's threads, which may have to be waited for.
        order = np.argsort(rows.numpy(), kind="stable")
        ordered = rows.numpy()[order]
        numbers, starts = np.unique(ordered // self._shard_rows, return_index=True)
        ends = [*starts[1:].tolist(), len(ordered)]
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        found = {}
        for name, views in names.items():
            parts: np.ndarray | None = None
            for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
                shard = self._shard(number, name)
                places = ordered[start:end] - number * self._shard_rows
                if views is not None:
                    places = places * shard.shape[1] + views.numpy()[order[start:end]]
                    shard = shard.flatten(0, 1)
                if parts is None:
                    parts = np.empty((len(rows), *shard.shape[1:]), shard.numpy().dtype)
                # "clip" lets numpy write into `out` directly; every place is within it.
                np.take(shard.numpy(), places, 0, out=parts[start:end], mode="clip")
            assert parts is not None, "at least one row"
            found[name] = torch.from_numpy(parts.take(inverse, 0))
        return found


@dataclass(frozen=True)
class Selection:
    """Some rows of a tensor in shards; iterate over it for blocks of at most `SHARD_ROWS` rows.

    Attributes:
        shards: where they are.
        name: of the tensor.
        rows: `(n,)` int64, which rows and in which order; None: all of them.
    """

    shards: Shards
    name: str
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.shards) if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Read the blocks one after the other, each `(n, ...)` on the CPU."""
        if self.rows is None:
            yield from self.shards.read_in_order(self.name)
        else:
            for chosen in self.rows.split(SHARD_ROWS):
                yield self.shards.read(self.name, chosen)

    def subsets(self, count: int) -> list["Selection"]:
        """Return `count` disjoint selections of equal size; rows that are left over are dropped."""
        size = len(self) // count
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        return [Selection(self.shards, self.name, x) for x in rows.split(size)[:count]]


def write_shards(
    folder: str | Path,
    num_rows: int,
    make_rows: Callable[[range], dict[str, torch.Tensor]],
    identity: dict[str, Any],
    on_rows: Callable[[int], object] = lambda count: None,
) -> Shards:
    """Write a folder of shards, except those that are there.

    Args:
        folder: made if it is missing. One that was begun for the same identity goes on.
        num_rows: how many rows in all.
        make_rows: makes the tensors of a range of rows, on the CPU.
        identity: what the rows depend on, as JSON; kept in manifest.json.
        on_rows: called with the number of rows after each shard, also after one that was there.

    Returns:
        The shards.

    Raises:
        UserError: if the folder holds shards of another identity, or cannot be written.
    """
    folder = Path(folder)
    manifest = {"rows": num_rows, "shard_rows": SHARD_ROWS, **identity}
    manifest = json.loads(json.dumps(manifest))  # as it will be read again
    recorded: dict[str, Any] = {}
    if (folder / "manifest.json").is_file():
        try:
            before = json.loads((folder / "manifest.json").read_bytes())
            recorded = before.pop("shards", {})
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{folder} has no manifest.json to read: remove it") from error
        if before != manifest:
            other = [k for k in {**before, **manifest} if before.get(k) != manifest.get(k)]
            what = "number of images" if other[0] == "rows" else other[0]
            raise UserError(
                f"{folder} was made with another {what}: remove that folder, or choose another"
            )
    else:
        write_manifest(folder, manifest)
    shards = {}
    for name, rows in shard_ranges(num_rows, SHARD_ROWS).items():
        path = folder / name
        shards[name] = find_shard(path, recorded.get(name)) or write_shard(path, make_rows(rows))
        on_rows(len(rows))
    if shards != recorded:
        write_manifest(folder, manifest, shards)
    return Shards(folder, num_rows, SHARD_ROWS)


def shard_ranges(num_rows: int, shard_rows: int, prefix: str = "") -> dict[str, range]:
    """Return which rows each shard has, by the name of its file, in order."""
    return {
        f"{prefix}{number:06d}.safetensors": range(start, min(start + shard_rows, num_rows))
        for number, start in enumerate(range(0, num_rows, shard_rows))
    }


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write one shard whole, then its entry beside it, by which the next run knows it again.

    Args:
        path: of the file.
        tensors: on the CPU, with one row an image.

    Returns:
        The entry, for the manifest: `rows`, `bytes` and `sha256`.

    Raises:
        UserError: if the disk is full, or the folder cannot be written.
    """
    content = save({name: x.contiguous() for name, x in tensors.items()})
    entry = {
        "rows": len(next(iter(tensors.values()))),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with _full_disk_is_one_line(path):
        with replaced_whole(path) as temporary:
            temporary.write_bytes(content)
        write_json(_entry_path(path), entry)
    return entry


def find_shard(path: Path, recorded: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the entry of a shard that is what was written; None: it has to be made.

    Args:
        path: of the file.
        recorded: its entry in a finished manifest; None: it is read beside the file.
    """
    try:
        entry = recorded or json.loads(_entry_path(path).read_bytes())
        entry = {key: entry[key] for key in ("rows", "bytes", "sha256")}
        return entry if hash_file(path) == entry["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_manifest(
    folder: Path, manifest: dict[str, Any], shards: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write manifest.json: to begin a folder, or to finish it.

    Args:
        folder: made if it is missing.
        manifest: what the shards depend on.
        shards: the entries of all files, by name, if all are there; those beside them are removed.

    Raises:
        UserError: if the disk is full, or the folder cannot be written.
    """
    path = folder / "manifest.json"
    with _full_disk_is_one_line(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, manifest if shards is None else manifest | {"shards": shards})
    for name in shards or {}:
        _entry_path(folder / name).unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.entry.json")


@contextmanager
def _full_disk_is_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room, and run the same command "
            "again; what was written before is kept"
        ) from error
