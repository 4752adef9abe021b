"""Labels of image files from metadata.csv, .jsonl or .parquet, as `datasets` reads them.

Each lies in a folder of images or above it. Its column `file_name` is a path from its own folder.
"""

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Features

from hf_latent.data.images.sources.columns import choose_label_column
from hf_latent.data.images.sources.labels import Labels, NoClassesError
from hf_latent.data.images.sources.listing import Listing
from hf_latent.errors import UserError

FILE_NAME = "file_name"
READERS = {
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
    ".parquet": pyarrow.parquet.read_table,
}


def read_metadata_labels(
    listing: Listing, splits: Mapping[str, Sequence[str]], label_column: str | None
) -> tuple[Labels, list[str]]:
    """Read the labels of some images.

    Args:
        listing: of the whole folder.
        splits: by split, the paths of the images in the listing.
        label_column: the column that the user named; None: by its name.

    Returns:
        The labels, and notes on what is not used.

    Raises:
        NoClassesError: if there are none.
        UserError: if a file is damaged, or a row names a file outside the file's folder.
    """
    tables, notes = [], []
    for file in listing.metadata:
        table = _read_table(listing.folder, file)
        if FILE_NAME in table.column_names:
            tables.append(table)
        else:
            columns = ", ".join(table.column_names)
            notes.append(f"{file} is not used: it has no column {FILE_NAME}, only {columns}")
    if not tables:
        raise NoClassesError("; ".join(notes) or "there is no metadata.csv with labels")
    what = f"{listing.metadata[0]}" + (" and others" if len(listing.metadata) > 1 else "")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"{listing.folder}: {what} differ in their columns: {error}") from error
    features = Features.from_arrow_schema(table.schema.remove_metadata())
    features.pop(FILE_NAME)
    label = choose_label_column(features, f"{listing.folder}/{what}", label_column)
    where = f"the column {label} of {what}"
    value_of = _value_of(table, label, where)
    images = {normalize("NFC", path) for path in listing.images}
    lost = [path for path in value_of if path not in images]
    if lost:
        notes.append(f"{what}: {len(lost)} rows name no image that is here, such as {lost[0]}")
    unused = [name for name in features if name != label]
    if unused:
        notes.append(f"columns of {what} not used: {', '.join(unused)}")
    values = {
        split: [value_of.get(normalize("NFC", path)) for path in paths]
        for split, paths in splits.items()
    }
    return Labels(values, where, may_be_ids=label_column is None), notes


def _read_table(folder: str, file: str) -> pa.Table:
    """Read one file; `file_name` becomes the path from the folder of the data set."""
    path = os.path.join(folder, file)
    try:
        table = READERS[os.path.splitext(file)[1]](path)
        if FILE_NAME not in table.column_names:
            return table
        names = table.column(FILE_NAME).cast(pa.string()).to_pylist()  # UTF-8, or an error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): repair it, or pass "
            "--label_column none to leave it"
        ) from error
    names = [(name or "").replace("\\", "/") for name in names]
    paths = [posixpath.normpath(name) for name in names]
    for row, (name, inner) in enumerate(zip(names, paths, strict=True)):
        if name.startswith("/") or name[1:2] == ":" or inner.split("/", 1)[0] == "..":
            raise UserError(
                f"{path}: row {row} names {name!r}, which is not in the file's own folder: write "
                "paths from there, and move the images or the file"
            )
    parent = posixpath.dirname(file)
    full = [normalize("NFC", posixpath.join(parent, inner)) for inner in paths]
    place = table.column_names.index(FILE_NAME)
    return table.set_column(place, FILE_NAME, pa.array(full, pa.string()))


def _value_of(table: pa.Table, label: str, where: str) -> dict[str, Any]:
    value_of: dict[str, Any] = {}
    rows = (table.column(name).to_pylist() for name in (FILE_NAME, label))
    for path, value in zip(*rows, strict=True):
        if value_of.setdefault(path, value) != value:
            raise NoClassesError(f"{where} has several values for {path}")
    return value_of
