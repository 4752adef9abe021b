"""A folder of image files: its splits, its classes, and its rows as a data set of paths.

`load_dataset("imagefolder")` is not used: it guesses splits from words in file names, so a file
`sample_test_1.png` would hide all others, and it drops labels of files at unequal depth.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image

from hf_latent.data.images.sources.labels import Labels, NoClassesError, sort_classes
from hf_latent.data.images.sources.listing import Listing
from hf_latent.data.images.sources.splits import (
    NONE,
    choose_splits,
    describe_unused,
    split_kind,
)
from hf_latent.errors import UserError

# Paths from the root of all images, and from the folder in which their classes are.
Paths = dict[str, str]


@dataclass(frozen=True)
class FolderSplits:
    """The splits of an image folder.

    Attributes:
        splits: `train` and, if there is one, `held_out`.
        held_out_from: as in "the folder val"; None: no folder is held out.
        root: the folder in which the classes of the training images are; "": the folder itself.
        notes: what was decided.
    """

    splits: dict[str, Paths]
    held_out_from: str | None
    root: str
    notes: list[str]


def split_folder(
    listing: Listing, train_split: str | None, validation_split: str | None
) -> FolderSplits:
    """Sort the images of a folder into splits.

    If the user names a split, the folders beside it are splits too. Otherwise folders are splits if
    all of them have names of splits, and one is for training and one is not; these may be the
    first folders that branch, or all those one level deeper. Any other folder is a class.

    Args:
        listing: of the folder, with at least one image.
        train_split: a folder's path from there; `.` is all that is not held out.
        validation_split: the same, or `none`.

    Raises:
        UserError: if the folders leave no choice, or several.
    """
    given = [x and posixpath.normpath(x) for x in (train_split, validation_split)]
    paths = [name for name in given if name not in (None, NONE)]
    notes: list[str] = []
    if paths:
        folders = _group_by_folder(listing, paths)
    else:
        folders, notes = _find_split_folders(listing)
    train, held_out = choose_splits(list(folders), listing.folder, *given)
    notes += describe_unused(list(folders), train, held_out)
    excluded = folders[held_out] if held_out is not None else {}
    used = {path: inner for path, inner in folders[train].items() if path not in excluded}
    if not used:
        raise UserError(f"{listing.folder}: all images of {train} are held out in {held_out}")
    splits = {}
    splits["train"], root = _below_single_folders(used)
    if held_out is not None:
        classes = {_top(path) for path in splits["train"].values()}
        splits["held_out"], _ = _below_single_folders(excluded, classes)
    root = posixpath.normpath(posixpath.join(train, root)).removeprefix(".")
    if root and held_out is None:
        notes.append(f"the images are all in the folder {root}")
    return FolderSplits(splits, held_out and f"the folder {held_out}", root, notes)


def _top(path: str) -> str:
    """Return the first folder of a path; that of a loose file is ''."""
    return path.split("/", 1)[0] if "/" in path else ""


def _group_by_folder(listing: Listing, named: Sequence[str]) -> dict[str, Paths]:
    """Return the images of some folders, and those of the folders beside each."""
    folders: dict[str, Paths] = {}
    for name in named:
        if name == ".":
            folders[name] = {path: path for path in listing.images}
            continue
        parent = posixpath.dirname(name)
        prefix = f"{parent}/" if parent else ""
        for path in listing.images:
            if path.startswith(prefix) and (top := _top(path.removeprefix(prefix))):
                folders.setdefault(prefix + top, {})[path] = path.removeprefix(f"{prefix}{top}/")
    return folders


def _below_single_folders(paths: Paths, keep: set[str] | None = None) -> tuple[Paths, str]:
    """Go down while all images lie in one folder, which is not one to keep; return its path too."""
    root: list[str] = []
    while len(tops := {_top(path) for path in paths.values()}) == 1:
        [top] = tops
        if not top or (keep is not None and top in keep):
            break
        paths = {path: inner.removeprefix(f"{top}/") for path, inner in paths.items()}
        root.append(top)
    return paths, "/".join(root)


def _find_split_folders(listing: Listing) -> tuple[dict[str, Paths], list[str]]:
    """Return the images of each folder that is a split, and notes; without any, of the root `.`."""
    everything = {path: path for path in listing.images}
    inner, root = _below_single_folders(everything)
    folders = _group_by_level(inner, 0)
    names = {name: split_kind(name) for name in folders}
    if None not in (kinds := {kind for kind, _ in names.values()}) and _is_pair(kinds):
        return {posixpath.join(root, name): paths for name, paths in folders.items()}, []
    for others in {others for _, others in names.values()}:
        alike = sorted(name for name, (kind, x) in names.items() if kind and x == others)
        if _is_pair({names[name][0] for name in alike}):
            beside = sorted(name or "loose images" for name in names.keys() - {*alike})
            raise UserError(
                f"{os.path.join(listing.folder, root)} has {', '.join(beside[:8])} beside "
                f"{', '.join(alike)}: move them, or name the splits with --train_split and "
                "--validation_split (--train_split . takes every folder as a class)"
            )
    deeper = _group_by_level(inner, 1)
    if _is_pair({split_kind(name)[0] for name in deeper}) and all(
        kind and not others for kind, others in map(split_kind, deeper)
    ):
        return deeper, [f"the folders {', '.join(sorted(deeper))} inside others are splits"]
    like = sorted(name for name, (kind, others) in names.items() if kind and not others)
    if len(like) == len(names) and "train" not in kinds:
        return {posixpath.join(root, name): paths for name, paths in folders.items()}, []
    above = root.split("/")
    for count, name in enumerate(above, 1):
        if split_kind(name)[0] in ("validation", "test") and not split_kind(name)[1]:
            return {"/".join(above[:count]): everything}, []
    notes = [f"taken as classes, not as splits: {', '.join(like)}"] if like else []
    return {".": everything}, notes


def _group_by_level(paths: Paths, depth: int) -> dict[str, Paths]:
    """Group images by their folder at a depth, and take that folder out of their paths."""
    folders: dict[str, Paths] = {}
    for path, inner in paths.items():
        *parents, file = inner.split("/")
        name = parents.pop(depth) if len(parents) > depth else ""
        folders.setdefault(name, {})[path] = "/".join([*parents, file])
    return folders


def _is_pair(kinds: set[str | None]) -> bool:
    return "train" in kinds and not kinds.isdisjoint(("validation", "test"))


def read_folder_labels(found: FolderSplits, folder: str) -> tuple[Labels, list[str]]:
    """Return the folders' names as labels, and no notes.

    Raises:
        NoClassesError: if the training images are not all in one of several folders.
        UserError: if a held-out image is in none of these.
    """
    train = found.splits["train"]
    tops = {_top(path) for path in train.values()}
    classes = sort_classes(tops - {""})
    where = f"the folders in {found.root}" if found.root else "the folders"
    if not classes:
        raise NoClassesError(f"the images lie in one folder{found.root and ', '}{found.root}")
    if "" in tops:
        loose = [path for path, inner in train.items() if not _top(inner)]
        raise NoClassesError(
            f"{len(loose)} images, such as {loose[0]}, lie beside the class folders "
            f"{', '.join(classes[:8])}: move them into one"
        )
    for path, inner in found.splits.get("held_out", {}).items():
        if _top(inner) not in tops:
            raise UserError(
                f"{os.path.join(folder, path)} is in no class of the training images: move or "
                f"remove it, or pass --label_column {NONE} or --validation_split {NONE}"
            )
    values = {x: [_top(inner) for inner in paths.values()] for x, paths in found.splits.items()}
    return Labels(values, where), []


def open_files(listing: Listing, paths: Paths) -> Dataset:
    """Make a data set with a column `image` of paths, in their order."""
    files = [os.path.join(listing.folder, path) for path in paths]
    # `datasets` hashes the arguments to find its cache: one string, because a list of a million
    # strings takes minutes; sizes and times, so that a changed file makes another key.
    state = np.array([listing.images[path] for path in paths])
    return Dataset.from_generator(
        _generate_rows,
        features=Features({"image": Image()}),
        gen_kwargs={"files": "\0".join(files), "state": state},
    ).cast_column("image", Image(decode=False))


def _generate_rows(files: str, state: np.ndarray) -> Iterator[dict[str, Any]]:
    for file in files.split("\0"):
        yield {"image": {"path": file, "bytes": None}}
