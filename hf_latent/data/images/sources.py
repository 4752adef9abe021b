"""Open any source of images as training images and, where the source has them, held-out images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from datasets.features.features import FeatureType

from hf_latent.data.fashion_mnist import load_fashion_mnist, load_fashion_mnist_sample
from hf_latent.data.images.folder import list_images, open_image_folder
from hf_latent.data.images.own_files import hub_folders, refuse_foreign_files
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError

BUILT_IN = {
    "fashion_mnist": load_fashion_mnist_sample,
    "fashion_mnist_full": load_fashion_mnist,
}
HELD_OUT_SPLITS = ("validation", "val", "valid", "test")
IMAGE_COLUMNS = ("image", "images", "img", "pixel_values", "picture", "photo", "png", "jpg", "jpeg")
LABEL_COLUMNS = ("label", "labels")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SPLIT_IN_NAME = re.compile(r"(train|test|validation|valid|val)(ing)?(?![a-z])")


@dataclass(frozen=True)
class Source:
    """The images of a source, still encoded.

    Attributes:
        train: columns `image` (`Image(decode=False)`) and, when there are labels, `label`
            (`ClassLabel`).
        held_out: the same columns for the source's own validation or test split; None without.
    """

    train: Dataset
    held_out: Dataset | None


def open_source(data: str) -> Source:
    """Open a source of images.

    Args:
        data: `fashion_mnist` or `fashion_mnist_full` (built in), a folder of images (class
            subfolders give labels), a parquet file or a folder of them, a folder written by
            `save_to_disk`, or the id `owner/name` of a data set on the Hugging Face Hub.

    Returns:
        The training split, and the split named validation, val, valid or test, the first of
        these that there is.

    Raises:
        UserError: if there is nothing to open, or no image column, or labels that do not fit, or
            a row that names a file outside its source.
    """
    with quiet_datasets():
        splits, folders = _open_splits(data)
        train, held_out = _choose_splits(splits, data)
        image = _image_column(train.features, data)
        label = _label_column(train.features)
        train, held_out = (_keep_columns(split, image, label, data) for split in (train, held_out))
        for split in (train, held_out):
            if split is not None and folders is not None:
                refuse_foreign_files(split, data, folders)
        if label is not None:
            train, held_out = _to_class_labels(train, held_out, data)
    return Source(train, held_out)


def _open_splits(data: str) -> tuple[DatasetDict, Sequence[Path] | None]:
    """Return the splits, and the folders that their rows may name files in (None: any)."""
    path = Path(data).expanduser()
    if data in BUILT_IN:
        return BUILT_IN[data](), ()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise UserError(f"{data} is a file but not a parquet file: give a folder of images")
        return _open_parquet({"train": [path]}), ()
    if HUB_ID.fullmatch(data):
        try:
            loaded = datasets.load_dataset(data)
        # Whatever goes wrong between here and the Hub is the user's to mend, not ours.
        except Exception as error:
            raise UserError(
                f"{data} is neither a folder or file here nor a data set that the Hub (or its "
                f"cache) could give: {_one_line(error)}"
            ) from error
        return loaded, hub_folders(data)
    raise UserError(
        f"{data} is not a source of images: there is no such folder or file, and it is neither "
        f"built in ({', '.join(BUILT_IN)}) nor a Hub id like owner/name"
    )


def _open_folder(folder: Path) -> tuple[DatasetDict, Sequence[Path] | None]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            loaded = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} was not saved whole: {_one_line(error)}") from error
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded), ()
    parquet = [file for file in sorted(folder.rglob("*.parquet")) if file.stem != "metadata"]
    if parquet:
        return _open_parquet(_parquet_splits(folder, parquet)), ()
    images = list_images(folder)
    if not images:
        raise UserError(f"{folder} holds no image, no parquet file and no saved data set")
    # We listed these files ourselves, so links may lead to wherever the user keeps them.
    return open_image_folder(folder, images), None


def _parquet_splits(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Sort parquet files by the split that their name, or else their folder's name, begins with."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        names = reversed(file.relative_to(folder).parts)
        matches = (SPLIT_IN_NAME.match(name.lower()) for name in names)
        split = next((match[1] for match in matches if match), "train")
        splits.setdefault(split, []).append(file)
    return splits if "train" in splits else {"train": list(files)}


def _open_parquet(splits: dict[str, list[Path]]) -> DatasetDict:
    # The names are patterns to `datasets`, so brackets and the like are escaped.
    files = {
        split: [re.sub(r"([*?[])", r"[\1]", str(file.resolve())) for file in paths]
        for split, paths in splits.items()
    }
    try:
        return datasets.load_dataset("parquet", data_files=files)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = next(iter(splits.values()))[0]
        cause = _one_line(error.__cause__ or error)
        raise UserError(f"{first} (or a file beside it) cannot be read: {cause}") from error


def _choose_splits(splits: DatasetDict, data: str) -> tuple[Dataset, Dataset | None]:
    if "train" not in splits and len(splits) > 1:
        raise UserError(f"{data} has no split named train, only {', '.join(splits)}")
    train = "train" if "train" in splits else next(iter(splits))
    if not len(splits[train]):
        raise UserError(f"{data} has no training images")
    held_out = (name for name in HELD_OUT_SPLITS if name in splits and name != train)
    return splits[train], next((splits[name] for name in held_out if len(splits[name])), None)


def _image_column(features: Features, data: str) -> str:
    for name, feature in features.items():
        if isinstance(feature, Image):
            return name
    by_name = {name.lower(): name for name, feature in features.items() if _holds_bytes(feature)}
    for name in IMAGE_COLUMNS:
        if name in by_name:
            return by_name[name]
    raise UserError(f"{data} has no column of images, only {', '.join(features)}: name it 'image'")


def _holds_bytes(feature: FeatureType) -> bool:
    """Tell whether a plain column may hold encoded images: binary, or struct of bytes and path."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _label_column(features: Features) -> str | None:
    for name in LABEL_COLUMNS:
        feature = features.get(name)
        if isinstance(feature, ClassLabel):
            return name
        if isinstance(feature, Value) and ("string" in feature.dtype or "int" in feature.dtype):
            return name
    return next((name for name, value in features.items() if isinstance(value, ClassLabel)), None)


def _keep_columns(
    split: Dataset | None, image: str, label: str | None, data: str
) -> Dataset | None:
    if split is None:
        return None
    names = {image: "image"} if label is None else {image: "image", label: "label"}
    if not names.keys() <= split.features.keys():
        raise UserError(f"{data}: its held-out split lacks a column of {', '.join(names)}")
    split = split.select_columns(list(names))
    # Only what changes: `image` may have been another column's name.
    split = split.rename_columns({old: new for old, new in names.items() if old != new})
    return split.cast_column("image", Image(decode=False))


def _to_class_labels(
    train: Dataset, held_out: Dataset | None, data: str
) -> tuple[Dataset, Dataset | None]:
    """Turn strings or integers into ClassLabel, and check that every row has a label."""
    splits = [train] if held_out is None else [train, held_out]
    columns = [split.data.column("label").to_pylist() for split in splits]
    feature = train.features["label"]
    if any(split.features["label"] != feature for split in splits):
        raise UserError(f"{data}: training and held-out labels differ in type or in class names")
    missing = sum(value is None for column in columns for value in column)
    if isinstance(feature, ClassLabel):
        missing += sum(value == -1 for column in columns for value in column)
    if missing:
        raise UserError(f"{data}: {missing} rows have no label; fill them or drop the column")
    if not isinstance(feature, ClassLabel):
        names = sorted({value for column in columns for value in column})
        numbers = {name: number for number, name in enumerate(names)}
        feature = ClassLabel(names=[str(name) for name in names])
        for i, column in enumerate(columns):
            labels = np.array([numbers[value] for value in column], np.int64)
            images = splits[i].remove_columns("label")
            splits[i] = images.add_column("label", labels, feature=feature)
    return splits[0], splits[1] if held_out is not None else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
