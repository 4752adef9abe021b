"""A pickle that would leave a mark if anything ever loaded it."""

import os
import pickle
from pathlib import Path

import torch


class _Mark:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class MarkingPickle:
    """Writes pickles and torch files that make a folder when they are loaded.

    Args:
        mark: the folder.
    """

    def __init__(self, mark: Path):
        self.mark = mark

    def write(self, path: Path) -> None:
        """Plant one: plain, or as torch saves by the endings that are torch's."""
        content = {"conv_in.weight": _Mark(self.mark)}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))

    def assert_never_loaded(self) -> None:
        assert not self.mark.exists()
