"""Sources with columns: parquet files, saved data sets and data sets of the Hub."""

import io
import os
import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from hf_latent.data.images.sources.captions import Captions, clean_captions
from hf_latent.data.images.sources.columns import (
    array_dtype,
    choose_caption_column,
    choose_image_column,
    choose_label_column,
)
from hf_latent.data.images.sources.labels import Labels
from hf_latent.data.images.sources.listing import Listing
from hf_latent.data.images.sources.splits import (
    NONE,
    choose_splits,
    describe_unused,
    split_kind,
)
from hf_latent.errors import UserError, cause_of
from hf_latent.output import read_json

UNNAMED = "other files"


def open_saved(folder: str) -> DatasetDict:
    """Open what `save_to_disk` wrote; a data set without splits is the split train."""
    index = os.path.join(folder, "dataset_dict.json")
    try:
        if not os.path.isfile(index):
            return DatasetDict(train=_open_saved_split(folder))
        names = read_json(index)["splits"]
        if not all(re.fullmatch(r"\w[\w.-]*", name) for name in names):
            raise ValueError(f"{index} names no splits")
        return DatasetDict({name: _open_saved_split(os.path.join(folder, name)) for name in names})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} was not saved whole: {cause_of(error)}") from error


def _open_saved_split(folder: str) -> Dataset:
    # `datasets` saves an empty split without files, and then cannot load it.
    if not read_json(os.path.join(folder, "state.json"))["_data_files"]:
        return Dataset.from_dict({})
    return Dataset.load_from_disk(folder)


def open_parquet_folder(
    listing: Listing, train_split: str | None, validation_split: str | None
) -> DatasetDict:
    """Open the parquet files of a folder.

    A file belongs to the split that the user named, if that is its name, the beginning of its name
    or a folder of it; or else to the split of its name; or else to that of the innermost folder
    with such a name.
    """
    splits: dict[str, list[str]] = {}
    given = [name for name in (train_split, validation_split) if name not in (None, NONE)]
    for file in listing.parquet:
        path = os.path.splitext(file)[0]
        own = [x for x in given if re.match(rf"(.*/)?{re.escape(x)}(?![^\W_])", path)]
        kinds = [split_kind(part)[0] for part in reversed(path.split("/"))]
        name = next(filter(None, [*own, *kinds]), UNNAMED)
        splits.setdefault(name, []).append(os.path.join(listing.folder, file))
    return DatasetDict({name: open_parquet(files) for name, files in splits.items()})


def open_parquet(files: Sequence[str]) -> Dataset:
    """Open the parquet files of one split."""
    try:
        # `datasets` cannot read a file without rows.
        full = [file for file in files if pq.read_metadata(file).num_rows]
        # It reads names as patterns, so escape brackets and the like.
        patterns = [re.sub(r"([*?[])", r"[\1]", os.path.realpath(file)) for file in full]
        if not patterns:
            return Dataset.from_dict({})
        return datasets.load_dataset("parquet", data_files={"train": patterns})["train"]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = cause_of(error.__cause__ or error)
        raise UserError(f"{files[0]} (or a file beside it) cannot be read: {cause}") from error


def choose_table_splits(
    splits: DatasetDict, where: str, train_split: str | None, validation_split: str | None
) -> tuple[DatasetDict, str | None, list[str]]:
    """Choose `train` and, if there is one, `held_out`; empty splits count as absent.

    Returns:
        The splits; where the held-out images come from; notes.
    """
    full = {name: split for name, split in splits.items() if len(split)}
    empty = ", ".join(name for name in splits if name not in full)
    if not full:
        raise UserError(f"{where} has no training images: its splits are empty ({empty})")
    where += f" (empty splits: {empty})" if empty else ""
    train, held_out = choose_splits(list(full), where, train_split, validation_split)
    notes = describe_unused(list(full), train, held_out)
    notes += [f"empty splits: {empty}"] if empty else []
    chosen = DatasetDict(train=full[train])
    if held_out is not None:
        chosen["held_out"] = full[held_out]
    return chosen, held_out and f"the split {held_out}", notes


def take_images(
    splits: DatasetDict, where: str, image_column: str | None
) -> tuple[DatasetDict, str, list[str]]:
    """Keep the column of images only, as `image` of type `Image(decode=False)`.

    Returns:
        The splits; the column's name before; notes.

    Raises:
        UserError: if there is no such column.
    """
    image, notes = choose_image_column(splits["train"], where, image_column)
    if any(image not in split.features for split in splits.values()):
        raise UserError(f"{where}: its held-out split has no column {image}")
    images = splits.select_columns([image])
    # Rename only what changes: the key of the cached check depends on it.
    images = images if image == "image" else images.rename_column(image, "image")
    dtype = array_dtype(images["train"].features["image"])
    if dtype is None:
        return images.cast_column("image", Image(decode=False)), image, notes
    features = Features({"image": Image(decode=False)})
    # Processes and later runs read the files that `map` writes to the cache of `datasets`.
    arrays = images.with_format("numpy")
    written = arrays.map(_as_npy, fn_kwargs={"dtype": dtype}, features=features)
    return written.with_format(None), image, notes


def _as_npy(row: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Write a row's array as a NumPy file; a damaged one becomes a row without an image."""
    file = io.BytesIO()
    try:
        np.save(file, np.asarray(row["image"], dtype), allow_pickle=False)
    except (TypeError, ValueError):  # missing values, or lists of different lengths
        return {"image": {"bytes": None, "path": None}}
    return {"image": {"bytes": file.getvalue(), "path": None}}


def read_column_captions(
    splits: DatasetDict, image: str, where: str, column: str | None
) -> tuple[Captions, str] | None:
    """Read the column of captions.

    Args:
        image: the column of images.
        column: that the user named; None: by its name.

    Returns:
        The captions and their column; None without a column of captions.

    Raises:
        UserError: if the column that the user named is not there or holds no text, or a split lacks
            it.
    """
    features = {x: value for x, value in splits["train"].features.items() if x != image}
    found = choose_caption_column(features, where, column)
    if found is None:
        return None
    if any(found not in split.features for split in splits.values()):
        raise UserError(
            f"{where}: the held-out split has no column {found}: name another --caption_column, or "
            f"pass --validation_split {NONE}"
        )
    values = {
        name: [clean_captions(x) for x in split.data.column(found).to_pylist()]
        for name, split in splits.items()
    }
    return Captions(values, f"the column {found}"), found


def read_column_labels(
    splits: DatasetDict,
    image: str,
    where: str,
    label_column: str | None,
    caption_column: str | None = None,
) -> tuple[Labels, list[str]]:
    """Read the column of labels.

    Args:
        image: the column of images.
        label_column: that the user named; None: by its name.
        caption_column: the column that holds the captions, and so no labels.

    Returns:
        The labels, and a note on the other columns.

    Raises:
        NoClassesError: if there are none.
        UserError: if the column that the user named is not there, or splits differ in it.
    """
    used = {image, None if caption_column == label_column else caption_column}
    others = {x: value for x, value in splits["train"].features.items() if x not in used}
    label = choose_label_column(others, where, label_column)
    features = [split.features.get(label) for split in splits.values()]
    declared = [feature for feature in features if isinstance(feature, ClassLabel)]
    if None in features or any(feature != declared[0] for feature in features if declared):
        what = "has no column" if None in features else "labels differ in type or class names:"
        raise UserError(
            f"{where}: the held-out split {what} {label}: pass --label_column {NONE} or "
            f"--validation_split {NONE}"
        )
    values = {name: split.data.column(label).to_pylist() for name, split in splits.items()}
    unused = [name for name in others if name != label]
    notes = [f"columns not used: {', '.join(unused)}"] if unused else []
    known = declared[0] if declared else None
    return Labels(values, f"the column {label}", known, label_column is None), notes
