"""Tensors with one row per image, in files that are read through memory maps.

    manifest.json                      what the rows depend on; once all shards exist, also the
                                       number of rows, length and checksum of each
    000000.safetensors ...             named tensors with one row per image
    000000.entry.json ...              the manifest's entry of one shard, until all shards exist

The number of images does not change the memory in use. A killed run resumes: it does not make a
shard again whose file has the checksum of its entry. Several processes can write different shards
of one folder.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hf_latent.errors import UserError
from hf_latent.output import read_json, remove_written, replaced_whole, write_json

SHARD_ROWS = 1000
_WRITTEN = re.compile(r"manifest\.json|\d{6}\.(safetensors|entry\.json)")


class Shards:
    """Named tensors with one row per image, in files of a fixed number of rows.

    A shard is mapped at its first read, and stays mapped; the system can take its memory back. A
    pickled copy maps its own shards.

    Args:
        folder: holds the shards.
        num_rows: rows of all shards.
        shard_rows: rows of each shard; the last one may have fewer.
        prefix: of the shards' file names.
        row_shapes: shape of a row of some tensors, by name; other tensors may have any shape.
    """

    def __init__(
        self,
        folder: str | Path,
        num_rows: int,
        shard_rows: int,
        prefix: str = "",
        row_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ):
        """Map no shard yet."""
        self.folder, self._row_shapes = Path(folder), row_shapes or {}
        self._length, self._shard_rows = num_rows, shard_rows
        self._names = list(shard_ranges(num_rows, shard_rows, prefix))
        self._mapped: dict[tuple[int, str], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped shards out of a pickle."""
        return {**self.__dict__, "_mapped": {}}

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def _map(self, number: int, name: str) -> torch.Tensor:
        """Return a tensor of one shard, as a view of its file."""
        if (number, name) in self._mapped:
            return self._mapped[number, name]
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
                f"{path} does not match its manifest.json: {name} has shape "
                f"{tuple(tensor.shape)}, not {shape}; remove it, and run again"
            )
        self._mapped[number, name] = tensor
        return tensor

    def close(self, number: int) -> None:
        """Unmap a shard; reading it maps it again."""
        for key in [key for key in self._mapped if key[0] == number]:
            del self._mapped[key]

    def select(self, name: str, rows: torch.Tensor | None = None) -> "Selection":
        """Return rows `(n,)` int64 (None: all) of a tensor, to be read block by block."""
        return Selection(self, name, torch.arange(len(self)) if rows is None else rows)

    def read(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Read some rows of one tensor, like `read_named`."""
        return self.read_named({name: None}, rows)[name]

    def read_named(
        self, names: Mapping[str, torch.Tensor | None], rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Read some rows of several tensors at once.

        Args:
            names: by the tensor's name, None for whole rows, or `(n,)` int64: which entry of each
                row to read.
            rows: `(n,)` int64 in any order, at least one, each below the length.

        Returns:
            By name `(n, ...)`, copies in memory.
        """
        # Read shard after shard, then bring the rows into the order of the request. numpy, because
        # waiting for torch's threads takes longer than such small copies.
        order = np.argsort(rows.numpy(), kind="stable")
        ordered = rows.numpy()[order]
        numbers, starts = np.unique(ordered // self._shard_rows, return_index=True)
        ends = [*starts[1:].tolist(), len(ordered)]
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        found = {}
        for name, entries in names.items():
            parts: np.ndarray | None = None
            for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
                shard = self._map(number, name)
                places = ordered[start:end] - number * self._shard_rows
                if entries is not None:
                    places = places * shard.shape[1] + entries.numpy()[order[start:end]]
                    shard = shard.flatten(0, 1)
                if parts is None:
                    parts = np.empty((len(rows), *shard.shape[1:]), shard.numpy().dtype)
                # mode="clip" lets numpy write into `out` directly; no place is out of range.
                np.take(shard.numpy(), places, 0, out=parts[start:end], mode="clip")
            assert parts is not None, "at least one row"
            found[name] = torch.from_numpy(parts.take(inverse, 0))
        return found


@dataclass(frozen=True)
class Selection:
    """Some rows of a tensor in shards; iterating yields blocks of at most `SHARD_ROWS` rows.

    Attributes:
        shards: hold the tensor.
        name: of the tensor.
        rows: `(n,)` int64, the rows in their order.
    """

    shards: Shards
    name: str
    rows: torch.Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Read one block after the other, each `(n, ...)` on the CPU."""
        for rows in self.rows.split(SHARD_ROWS):
            yield self.shards.read(self.name, rows)

    def subsets(self, count: int) -> list["Selection"]:
        """Return `count` disjoint selections of equal size; rows that remain are left out."""
        size = len(self) // count
        return [replace(self, rows=rows) for rows in self.rows.split(size)[:count]]


def write_shards(
    folder: str | Path,
    num_rows: int,
    make_rows: Callable[[range], dict[str, torch.Tensor]],
    identity: dict[str, Any],
    on_rows: Callable[[int], object] = lambda count: None,
    replace_other: bool = False,
) -> Shards:
    """Write the shards of a folder that do not exist yet.

    Args:
        folder: created if missing, resumed if its identity is the same.
        num_rows: rows of all shards.
        make_rows: returns the tensors of a range of rows, on the CPU.
        identity: JSON values that the rows depend on; kept in manifest.json.
        on_rows: called with the number of rows after each shard, existing or new.
        replace_other: replace the shards of another identity instead of refusing them.

    Raises:
        UserError: if the folder has another identity, or the disk is full.
    """
    folder = Path(folder)
    manifest = {"rows": num_rows, "shard_rows": SHARD_ROWS, **identity}
    manifest = json.loads(json.dumps(manifest))  # JSON turns tuples into lists
    recorded: dict[str, Any] = {}
    try:
        recorded = _read_recorded(folder, manifest)
    except UserError:
        if not replace_other:
            raise
        remove_written(folder, _WRITTEN)
    if not (folder / "manifest.json").is_file():
        write_manifest(folder, manifest)
    shards = {}
    for name, rows in shard_ranges(num_rows, SHARD_ROWS).items():
        path = folder / name
        shards[name] = find_shard(path, recorded.get(name)) or write_shard(path, make_rows(rows))
        on_rows(len(rows))
    if shards != recorded:
        write_manifest(folder, manifest, shards)
    return Shards(folder, num_rows, SHARD_ROWS)


def _read_recorded(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a finished folder's shards; none if it is not finished or missing.

    Raises:
        UserError: if the folder has another manifest.
    """
    if not (folder / "manifest.json").is_file():
        return {}
    try:
        before = read_json(folder / "manifest.json")
    except UserError as error:
        raise UserError(f"{folder} has no readable manifest.json: remove that folder") from error
    recorded: dict[str, Any] = before.pop("shards", {})
    if before != manifest:
        other = [k for k in {**before, **manifest} if before.get(k) != manifest.get(k)]
        what = "number of images" if other[0] == "rows" else other[0]
        raise UserError(
            f"{folder} was made with another {what}: remove that folder, or choose another"
        )
    return recorded


def shard_ranges(num_rows: int, shard_rows: int, prefix: str = "") -> dict[str, range]:
    """Return the rows of each shard, by its file name, in order."""
    return {
        f"{prefix}{number:06d}.safetensors": range(start, min(start + shard_rows, num_rows))
        for number, start in enumerate(range(0, num_rows, shard_rows))
    }


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write one shard whole, then its entry beside it; return the entry.

    Args:
        path: of the file.
        tensors: on the CPU, with one row per image.

    Raises:
        UserError: if the disk is full.
    """
    content = save({name: x.contiguous() for name, x in tensors.items()})
    entry = {
        "rows": len(next(iter(tensors.values()))),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with replaced_whole(path) as temporary:
        temporary.write_bytes(content)
    write_json(_entry_path(path), entry)
    return entry


def find_shard(path: Path, recorded: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the entry of a shard, or None if the file is missing or not what was written.

    Args:
        path: of the file.
        recorded: its entry in a finished manifest; None: read the entry beside the file.
    """
    try:
        entry = recorded or read_json(_entry_path(path))
        entry = {key: entry[key] for key in ("rows", "bytes", "sha256")}
        return entry if hash_file(path) == entry["sha256"] else None
    except (OSError, UserError, KeyError, TypeError):
        return None


def write_manifest(
    folder: Path, manifest: dict[str, Any], shards: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write manifest.json when a folder is begun, and again when it is finished.

    Args:
        folder: created if missing.
        manifest: what the shards depend on.
        shards: if all exist, the entry of each by its file name; the entry files are removed.

    Raises:
        UserError: if the disk is full.
    """
    path = folder / "manifest.json"
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
