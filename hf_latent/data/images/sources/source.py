"""Open any source of images: training images and, if the source has some, held-out images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from hf_latent.data.fashion_mnist import load_fashion_mnist, load_fashion_mnist_sample
from hf_latent.data.images.captions import MOST_ALTERNATIVES
from hf_latent.data.images.sources.captions import (
    AUTO,
    Captions,
    class_captions,
    read_text_files,
)
from hf_latent.data.images.sources.folder import open_files, read_folder_labels, split_folder
from hf_latent.data.images.sources.labels import Labels, NoClassesError, number_classes
from hf_latent.data.images.sources.listing import Listing, is_utf8, list_files
from hf_latent.data.images.sources.metadata import (
    read_metadata,
    read_metadata_captions,
    read_metadata_labels,
)
from hf_latent.data.images.sources.own_files import check_own_files, hub_folders
from hf_latent.data.images.sources.splits import NONE
from hf_latent.data.images.sources.tables import (
    choose_table_splits,
    open_parquet,
    open_parquet_folder,
    open_saved,
    read_column_captions,
    read_column_labels,
    take_images,
)
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError, cause_of

BUILT_IN = {
    "fashion_mnist": load_fashion_mnist_sample,
    "fashion_mnist_full": load_fashion_mnist,
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """The images of a source, still encoded.

    Attributes:
        train: columns `image` (`Image(decode=False)`) and, if there are labels, `label`
            (`ClassLabel`); if captions were asked for, `captions` (a list of texts, which are
            alternatives).
        held_out: the validation or test split of the source, with the same columns, if it has one.
        held_out_from: where the held-out images come from, as in "the split test"; None: from the
            training images, by their content.
        classes_from: where the classes come from, as in "the folders" or "the column label".
        no_classes_because: why there are no classes; None if there are some.
        captions_from: where the captions come from; None without captions.
        notes: one line on everything that the user must know: what was passed over, and why.
        bad_files: one line on each file or folder that could not be read while listing.
    """

    train: Dataset
    held_out: Dataset | None
    held_out_from: str | None = None
    classes_from: str | None = None
    no_classes_because: str | None = None
    captions_from: str | None = None
    notes: tuple[str, ...] = ()
    bad_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What the user chose of a source; None: by names, see `docs/guides/own_images.md`.

    Attributes:
        image_column: the column of images.
        label_column: the column of labels; `none` for no classes.
        train_split: the training split; in a folder, a folder's path from there.
        validation_split: the held-out split; `none` for held-out training images.
        caption_column: the column of captions; `auto`: a column with a usual name, or else the text
            files beside the images, or else the names of the classes; None: no captions.
    """

    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    caption_column: str | None = None

    @property
    def named_caption_column(self) -> str | None:
        """The column of captions that the user named."""
        return None if self.caption_column == AUTO else self.caption_column


def open_source(data: str, choice: Choice = Choice()) -> Source:
    """Open a source of images.

    Args:
        data: see `ImagesConfig`.
        choice: of splits and columns.

    Raises:
        UserError: if the source cannot be opened, leaves no choice of splits or columns, has labels
            that do not fit, or a row that names a file outside the source.
    """
    if not is_utf8(data):
        raise UserError(f"the name {data!a} is not UTF-8: rename it")
    path = Path(data).expanduser()
    with quiet_datasets():
        if data in BUILT_IN:
            return _open_table(BUILT_IN[data](), data, (), choice)
        if path.is_dir():
            return _open_folder(path, data, choice)
        if path.is_file():
            if path.suffix.lower() != ".parquet":
                raise UserError(f"{data} is a file but not a parquet file: give a folder of images")
            return _open_table(DatasetDict(train=open_parquet([str(path)])), data, (), choice)
        if HUB_ID.fullmatch(data):
            return _open_table(_load_from_hub(data), data, hub_folders(data), choice)
    raise UserError(
        f"{data} is not a source of images: there is no such folder or file, and it is neither "
        f"built in ({', '.join(BUILT_IN)}) nor a Hub id like owner/name"
    )


def _load_from_hub(data: str) -> DatasetDict:
    try:
        return datasets.load_dataset(data)
    # The Hub's errors have no common class, and only the user can mend them.
    except Exception as error:
        raise UserError(
            f"{data} is neither a folder nor a file here, and the Hub (or its cache) does not "
            f"give a data set of that name: {cause_of(error)}"
        ) from error


def _open_folder(folder: Path, data: str, choice: Choice) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_table(open_saved(str(folder)), data, (), choice)
    try:
        listing = list_files(str(folder))
    except OSError as error:
        raise UserError(f"{data} cannot be read: {cause_of(error)}") from error
    if listing.parquet:
        splits = open_parquet_folder(listing, choice.train_split, choice.validation_split)
        images = len(listing.images)
        beside = f"{images} image files beside the parquet files are not used" if images else ""
        source = _open_table(splits, f"{data} ({beside})" if beside else data, (), choice)
        notes = (*source.notes, *listing.notes, *([beside] if beside else []))
    elif listing.images:
        source = _open_image_folder(listing, data, choice)
        notes = (*source.notes, *listing.notes)
    else:
        found = "; ".join([*listing.notes, *listing.bad_files[:3]])
        raise UserError(
            f"{data} holds no image, no parquet file and no saved data set"
            f"{f' ({found})' if found else ''}"
        )
    return replace(source, notes=notes, bad_files=tuple(listing.bad_files))


def _open_table(splits: DatasetDict, data: str, folders: Sequence[Path], choice: Choice) -> Source:
    """Open a source with columns, whose rows may name files in some folders only."""
    splits, held_out_from, notes = choose_table_splits(
        splits, data, choice.train_split, choice.validation_split
    )
    images, column, more = take_images(splits, data, choice.image_column)
    for split in images.values():
        check_own_files(split, data, folders)
    source = Source(images["train"], images.get("held_out"), held_out_from, notes=(*notes, *more))
    captions = caption_column = None
    if choice.caption_column is not None:
        named = choice.named_caption_column
        captions, caption_column = read_column_captions(splits, column, data, named) or (None, None)
    reader = partial(read_column_labels, splits, column, data, choice.label_column, caption_column)
    source = _add_classes(source, data, choice, [reader])
    return _add_captions(source, data, choice, [captions])


def _open_image_folder(listing: Listing, data: str, choice: Choice) -> Source:
    if choice.image_column is not None:
        raise UserError(f"{data} is a folder of image files: leave out --image_column")
    found = split_folder(listing, choice.train_split, choice.validation_split)
    # These files come from the user's own folder, so their links may lead anywhere.
    splits = {name: open_files(listing, paths) for name, paths in found.splits.items()}
    source = Source(
        splits["train"], splits.get("held_out"), found.held_out_from, notes=tuple(found.notes)
    )
    paths = {name: list(split) for name, split in found.splits.items()}
    captions, caption_column = list[Captions | None](), None
    with_labels = choice.label_column != NONE and (listing.metadata or choice.label_column)
    if with_labels or choice.caption_column is not None:
        metadata = read_metadata(listing)
        if metadata.table is not None:
            source = replace(source, notes=(*source.notes, *metadata.notes))
    if choice.caption_column is not None:
        read = read_metadata_captions(metadata, paths, choice.named_caption_column)
        if read is not None:
            captions, caption_column = [read[0]], read[1]
        elif listing.texts:
            captions = [read_text_files(listing, paths)]
    readers: list[Callable[[], tuple[Labels, list[str]]]] = []
    if with_labels:
        readers.append(
            partial(read_metadata_labels, metadata, paths, choice.label_column, caption_column)
        )
    if choice.label_column is None:
        readers.append(partial(read_folder_labels, found, listing.folder))
    source = _add_classes(source, data, choice, readers)
    return _add_captions(source, data, choice, captions)


def _add_classes(
    source: Source,
    data: str,
    choice: Choice,
    readers: Sequence[Callable[[], tuple[Labels, list[str]]]],
) -> Source:
    """Add the labels of the first reader that finds classes, or say why there are none.

    Raises:
        UserError: if the column that the user named holds no classes.
    """
    reasons: list[str] = []
    for read in readers:
        try:
            labels, read_notes = read()
            names, numbers, more = number_classes(labels, data)
        except NoClassesError as error:
            reasons.append(str(error))
            continue
        feature = ClassLabel(names=names)
        splits = {"train": source.train, "held_out": source.held_out}
        labelled = {
            name: split and split.add_column("label", numbers[name], feature=feature)
            for name, split in splits.items()
        }
        notes = (*source.notes, *read_notes, *more, *reasons)
        return replace(source, **labelled, classes_from=labels.where, notes=notes)
    if choice.label_column not in (None, NONE):
        raise UserError(f"{data}: --label_column {choice.label_column}: {'; '.join(reasons)}")
    reasons = reasons or [f"--label_column is {NONE}"]
    return replace(source, no_classes_because="; ".join(reversed(reasons)))


def _add_captions(
    source: Source, data: str, choice: Choice, found: Sequence[Captions | None]
) -> Source:
    """Add the first captions that were found, or else the names of the classes.

    Raises:
        UserError: if captions were asked for, and no training image has one, or an image has too
            many.
    """
    if choice.caption_column is None:
        return source
    splits = {"train": source.train, "held_out": source.held_out}
    by_class = () if choice.named_caption_column else (class_captions(splits),)
    captions = next(filter(None, (*found, *by_class)), None)
    if captions is None:
        raise UserError(
            f"{data} has no captions: give each image a row in metadata.jsonl with file_name and "
            "text, a column of text in a table (--caption_column), or a .txt file beside it"
        )
    most = max(len(texts) for split in captions.values.values() for texts in split)
    if most > MOST_ALTERNATIVES:
        raise UserError(
            f"{data}: an image has {most:,} captions, from {captions.where}; at most "
            f"{MOST_ALTERNATIVES:,} are possible"
        )
    feature = List(Value("string"))
    captioned = {
        name: split
        and split.add_column("captions", [list(x) for x in captions.values[name]], feature=feature)
        for name, split in splits.items()
    }
    return replace(source, **captioned, captions_from=captions.where)
