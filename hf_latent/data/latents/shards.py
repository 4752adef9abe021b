"""Tensors of many images on disk: written a shard at a time, read through memory maps.

Memory stays flat in the number of images, and a killed run goes on at the first missing shard.
"""

import json
from collections.abc import Callable, Iterator, Mapping
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
        manifest: says `rows` and `shard_rows`; None: read from manifest.json.
        prefix: of the shards' names.
        row_shapes: what a row of each tensor must be, by name; None: anything.

    Raises:
        UserError: if there is no manifest to read.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: dict[str, Any] | None = None,
        prefix: str = "",
        row_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ):
        """Read the manifest; no shard is opened yet."""
        self.folder, self.prefix, self._row_shapes = Path(folder), prefix, row_shapes or {}
        try:
            if manifest is None:
                manifest = json.loads((self.folder / "manifest.json").read_text())
            self.manifest: dict[str, Any] = manifest
            self._length, self._shard_rows = int(manifest["rows"]), int(manifest["shard_rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder} has no manifest.json to read: remove it") from error
        self._open: dict[tuple[int, str], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is mapped out of a pickle."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def _map(self, number: int, name: str) -> torch.Tensor:
        path = self.folder / shard_name(number, self.prefix)
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
        for number in range(-(-len(self) // self._shard_rows)):
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
    """Write what is missing of a folder of shards.

    Args:
        folder: made where it is missing. One that was begun for the same identity goes on.
        num_rows: how many rows in all.
        make_rows: the tensors of a range of rows, on the CPU.
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
    if (folder / "manifest.json").is_file():
        before = Shards(folder).manifest
        if before != manifest:
            other = [k for k in {**before, **manifest} if before.get(k) != manifest.get(k)]
            what = "number of images" if other[0] == "rows" else other[0]
            raise UserError(
                f"{folder} was made with another {what}: remove that folder, or choose another"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "manifest.json", manifest)
    for number, start in enumerate(range(0, num_rows, SHARD_ROWS)):
        rows = range(start, min(start + SHARD_ROWS, num_rows))
        path = folder / shard_name(number)
        if not path.is_file():
            write_shard(path, make_rows(rows))
        on_rows(len(rows))
    return Shards(folder)


def shard_name(number: int, prefix: str = "") -> str:
    """Return the name of a shard's file."""
    return f"{prefix}{number:06d}.safetensors"


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one shard whole, or nothing.

    Args:
        path: of the file.
        tensors: on the CPU.

    Raises:
        UserError: if the disk is full, or the folder cannot be written.
    """
    try:
        with replaced_whole(path) as temporary:
            temporary.write_bytes(save({name: x.contiguous() for name, x in tensors.items()}))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written ({error}): make room, and run the same command again; what "
            "was written before is kept"
        ) from error
