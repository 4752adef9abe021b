"""Damage one file of a folder; the command must refuse it, or do as if it were whole."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.attacks.subjects import SUBJECTS, Outcome


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def zero(path: Path, draw: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def garble(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def swap(path: Path, draw: random.Random) -> None:
    """Put another file's content in its place."""
    others = [x for x in path.parent.iterdir() if x.is_file() and x != path]
    if others:
        shutil.copyfile(draw.choice(sorted(others)), path)


WAYS: list[Callable[[Path, random.Random], None]] = [cut, empty, zero, garble]
# Images are the data: fewer or other ones are not damaged. A model is a plain folder of diffusers,
# without checksums: another number in it is another model.
WAYS_OF = {name: [*WAYS, flip_bit, remove, swap] for name in SUBJECTS} | {
    "photos": [*WAYS, flip_bit],
    "model": [*WAYS, remove],
    "autoencoder": [*WAYS, remove],
}


def is_survived(outcome: Outcome, whole: Outcome) -> bool:
    """Return whether damage was refused with nothing written, or changed nothing."""
    if outcome.is_refusal:
        return not outcome.result
    return outcome.status == 0 and outcome.result == whole.result


def corrupt(folder: Path, name: str, draw: random.Random) -> str:
    """Damage a file of a subject in the working folder; return what was done to which."""
    files = [x for x in sorted((folder / SUBJECTS[name].folder).rglob("*")) if x.is_file()]
    path, way = draw.choice([x for x in files if x.stat().st_size]), draw.choice(WAYS_OF[name])
    way(path, draw)
    return f"{way.__name__} {path.relative_to(folder)}"
