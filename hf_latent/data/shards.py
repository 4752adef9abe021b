"""Tensors of many images on disk: written a shard at a time, read through memory maps.

Memory stays flat in the number of images, and a killed run goes on at the first missing shard.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole, write_json

SHARD_ROWS = 1000


class Shards:
    """Named tensors with one row an image, in files of `SHARD_ROWS` rows.

    Args:
        folder: holds manifest.json and the shards.

    Raises:
        UserError: if the folder is not whole.
    """

    def __init__(self, folder: str | Path):
        """Read the manifest; no shard is opened yet."""
        self.folder = Path(folder)
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_text())
            self._length = int(self.manifest["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder} has no manifest.json to read: remove it") from error

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def _shard(self, number: int, name: str) -> torch.Tensor:
        path = self.folder / _shard_name(number)
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it, and run again") from error

    def select(self, name: str, rows: torch.Tensor | None = None) -> "Selection":
        """Return some rows of a tensor, to be read block by block.

        Args:
            name: of the tensor.
            rows: `(n,)` int64, which rows and in which order; None: all.
        """
        return Selection(self, name, rows)

    def read_in_order(self, name: str) -> Iterator[torch.Tensor]:
        """Read a tensor shard by shard, without a copy: views of the mapped files."""
        for number in range(-(-len(self) // SHARD_ROWS)):
            yield self._shard(number, name)

    def read(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Read some rows at once.

        Args:
            name: of the tensor.
            rows: `(n,)` int64 in any order, at least one, each below the length.

        Returns:
            `(n, ...)`, a copy in memory.
        """
        numbers = rows // SHARD_ROWS
        parts = [
            (numbers == number, self._shard(number, name)) for number in numbers.unique().tolist()
        ]
        found = parts[0][1].new_empty((len(rows), *parts[0][1].shape[1:]))
        for places, shard in parts:
            found[places] = shard[rows[places] % SHARD_ROWS]
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
        UserError: if the folder holds shards of another identity.
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
        path = folder / _shard_name(number)
        if not path.is_file():
            tensors = {name: x.contiguous() for name, x in make_rows(rows).items()}
            with replaced_whole(path) as temporary:
                save_file(tensors, temporary)
        on_rows(len(rows))
    return Shards(folder)


def _shard_name(number: int) -> str:
    return f"{number:06d}.safetensors"
