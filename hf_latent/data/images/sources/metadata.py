"""Labels and captions of image files from metadata.csv, .jsonl or .parquet, as `datasets` reads.

Each lies in a folder of images or above it. Its column `file_name` is a path from its own folder.
"""

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Features

from hf_latent.data.images.sources.captions import Captions, clean_captions
from hf_latent.data.images.sources.columns import choose_caption_column, choose_label_column
from hf_latent.data.images.sources.labels import Labels, NoClassesError
from hf_latent.data.images.sources.listing import Listing
from hf_latent.errors import UserError

FILE_NAME = "file_name"
READERS = {
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
    ".parquet": pyarrow.parquet.read_table,
}


@dataclass(frozen=True)
class Metadata:
    """What a folder's metadata files say of its images.

    Attributes:
        folder: of the data set.
        table: `file_name` is the path from that folder; None: no file has such a column.
        where: the files' names.
        notes: on what is not used.
    """

    folder: str
    table: pa.Table | None
    where: str
    notes: list[str]

    def features(self) -> Features:
        """Return the features of the columns, without `file_name`."""
        if self.table is None:
            return Features()
        features = Features.from_arrow_schema(self.table.schema.remove_metadata())
        features.pop(FILE_NAME)
        return features


def read_metadata(listing: Listing) -> Metadata:
    """Read the metadata files of a folder.

    Raises:
        UserError: if a file is damaged, a row names a file outside the file's folder, or the files
            do not fit together.
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
        return Metadata(listing.folder, None, "", notes)
    what = f"{listing.metadata[0]}" + (" and others" if len(listing.metadata) > 1 else "")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"{listing.folder}: {what} differ in their columns: {error}") from error
    images = {normalize("NFC", path) for path in listing.images}
    lost = [x for x in dict.fromkeys(table.column(FILE_NAME).to_pylist()) if x not in images]
    if lost:
        notes.append(f"{what}: {len(lost)} rows name no image that is here, such as {lost[0]}")
    return Metadata(listing.folder, table, what, notes)


def read_metadata_captions(
    metadata: Metadata, splits: Mapping[str, Sequence[str]], column: str | None
) -> tuple[Captions, str] | None:
    """Read the captions of some images; the rows of one image are alternatives.

    Args:
        metadata: of the folder.
        splits: by split, the paths of the images in the listing.
        column: that the user named; None: by its name.

    Returns:
        The captions and their column; None without a column of captions.

    Raises:
        UserError: if the column that the user named is not there, or holds no text.
    """
    place = f"{metadata.folder}/{metadata.where}".removesuffix("/")
    found = choose_caption_column(metadata.features(), place, column)
    if found is None or metadata.table is None:
        return None
    texts: dict[str, list[str | None]] = {}
    rows = (metadata.table.column(name).to_pylist() for name in (FILE_NAME, found))
    for path, text in zip(*rows, strict=True):
        texts.setdefault(path, []).extend(text if isinstance(text, list) else [text])
    values = {
        split: [clean_captions(texts.get(normalize("NFC", path))) for path in paths]
        for split, paths in splits.items()
    }
    return Captions(values, f"the column {found} of {metadata.where}"), found


def read_metadata_labels(
    metadata: Metadata,
    splits: Mapping[str, Sequence[str]],
    label_column: str | None,
    caption_column: str | None = None,
) -> tuple[Labels, list[str]]:
    """Read the labels of some images.

    Args:
        metadata: of the folder.
        splits: by split, the paths of the images in the listing.
        label_column: the column that the user named; None: by its name.
        caption_column: the column that holds the captions, and so no labels.

    Returns:
        The labels, and a note on columns that are not used.

    Raises:
        NoClassesError: if there are none.
        UserError: if the column that the user named is not there.
    """
    if (table := metadata.table) is None:
        raise NoClassesError("; ".join(metadata.notes) or "there is no metadata.csv with labels")
    features, what = metadata.features(), metadata.where
    if caption_column != label_column:
        features.pop(caption_column, None)
    label = choose_label_column(features, f"{metadata.folder}/{what}", label_column)
    where = f"the column {label} of {what}"
    value_of = _value_of(table, label, where)
    unused = [name for name in features if name != label]
    notes = [f"columns of {what} not used: {', '.join(unused)}"] if unused else []
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
