"""A folder of image files as a data set of paths.

`load_dataset("imagefolder")` is not used: it guesses splits from words in file names, so a file
`sample_test_1.png` would hide all others, and it drops labels of files at unequal depth.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from hf_latent.errors import UserError

EXTENSIONS = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
}
HELD_OUT_SPLITS = ("validation", "val", "valid", "test")


def list_images(folder: Path) -> list[str]:
    """List the image files under a folder, at any depth.

    Returns:
        Sorted paths relative to the folder, without hidden files and folders; a folder that several
        links lead to is listed once.

    Raises:
        UserError: if a name is not UTF-8.
    """
    found: list[str] = []
    seen: set[str] = set()
    roots = [str(folder)]
    for root in roots:  # grows in the loop: linked folders follow all real ones
        for parent, subfolders, files in os.walk(root):
            real = os.path.realpath(parent)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
            below = [os.path.join(parent, name) for name in subfolders]
            roots += [path for path in below if os.path.islink(path)]
            found += [
                os.path.relpath(os.path.join(parent, name), folder)
                for name in files
                if os.path.splitext(name)[1].lower() in EXTENSIONS and not _is_hidden(name)
            ]
    for path in found:
        file = os.path.join(os.path.abspath(folder), path)
        if file != file.encode(errors="ignore").decode():
            raise UserError(f"the name of {file!r} is not UTF-8: rename it (convmv can do many)")
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def open_image_folder(folder: Path, images: Sequence[str]) -> DatasetDict:
    """Make a data set of paths, with labels from class subfolders.

    The subfolders at the top are splits if they are named train, validation, val, valid or test,
    and one is named train; otherwise every image is a training image. The labels are the names of
    the subfolders at the top (of each split), if every training image is in one and there are at
    least two. They are sorted, as numbers if all are digits.

    Args:
        folder: the root.
        images: paths relative to the folder, as from `list_images`; at least one.

    Returns:
        Splits with `image` and, if there are labels, `label`; the rows are sorted by path.

    Raises:
        UserError: if images lie beside split folders, or a held-out image has no known class.
    """
    splits = _sort_into_splits(folder, images)
    classes = {_class_of(path) for path in splits["train"].values()}
    names = None
    if len(classes) > 1 and "" not in classes:
        numeric = all(name.isdecimal() for name in classes)
        names = sorted(classes, key=lambda name: (int(name) if numeric else 0, name))
    return DatasetDict(
        {split: _open_split(folder, paths, names) for split, paths in splits.items()}
    )


def _sort_into_splits(folder: Path, images: Sequence[str]) -> dict[str, dict[str, str]]:
    """Map each split to {path relative to the folder: path relative to the split}."""
    tops = {_class_of(path) for path in images}
    split_folders = {top for top in tops if top.lower() in ("train", *HELD_OUT_SPLITS)}
    others = ", ".join(sorted(top or "loose images" for top in tops - split_folders))
    has_train = "train" in {top.lower() for top in split_folders}
    if not has_train or (others and len(split_folders) == 1):  # "train" may be a class
        return {"train": {path: path for path in images}}
    if others:
        raise UserError(
            f"{folder} has {others} beside {', '.join(sorted(split_folders))}: move them into one"
        )
    splits: dict[str, dict[str, str]] = {}
    for path in images:
        top, inner = path.split(os.sep, 1)
        splits.setdefault(top.lower(), {})[path] = inner
    return splits


def _class_of(path: str) -> str:
    """Return the first folder of a relative path; a file at the top has the class ''."""
    return path.split(os.sep, 1)[0] if os.sep in path else ""


def _open_split(folder: Path, paths: dict[str, str], names: list[str] | None) -> Dataset:
    features = Features({"image": Image()})
    labels = None
    if names is not None:
        features["label"] = ClassLabel(names=names)
        number_of = {name: number for number, name in enumerate(names)}
        unknown = [path for path, inner in paths.items() if _class_of(inner) not in number_of]
        if unknown:
            raise UserError(
                f"{folder / unknown[0]} is in no class of the train folder: move or remove it"
            )
        labels = np.array([number_of[_class_of(inner)] for inner in paths.values()])
    root = os.path.abspath(folder)
    files = [os.path.join(root, path) for path in paths]
    # `datasets` hashes the arguments to find its cache: one string, because a list of a million
    # strings takes minutes; sizes and times, so that a changed file makes another key.
    state = np.array([(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)])
    return Dataset.from_generator(
        _generate_rows,
        features=features,
        gen_kwargs={"files": "\0".join(files), "labels": labels, "state": state},
    )


def _generate_rows(
    files: str, labels: np.ndarray | None, state: np.ndarray
) -> Iterator[dict[str, Any]]:
    for i, file in enumerate(files.split("\0")):
        row = {"image": {"path": file, "bytes": None}}
        yield row if labels is None else {**row, "label": int(labels[i])}
