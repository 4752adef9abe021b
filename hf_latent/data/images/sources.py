"""Open any source of images: training images and, if the source has some, held-out images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from datasets.features.features import FeatureType

from hf_latent.data.fashion_mnist import load_fashion_mnist, load_fashion_mnist_sample
from hf_latent.data.images.folder import HELD_OUT_SPLITS, list_images, open_image_folder
from hf_latent.data.images.own_files import check_own_files, hub_folders
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError

BUILT_IN = {
    "fashion_mnist": load_fashion_mnist_sample,
    "fashion_mnist_full": load_fashion_mnist,
}
IMAGE_COLUMNS = ("image", "images", "img", "pixel_values", "picture", "photo", "png", "jpg", "jpeg")
LABEL_COLUMNS = ("label", "labels")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SPLIT_IN_NAME = re.compile(rf"(train|{'|'.join(HELD_OUT_SPLITS)})(ing)?(?![a-z])")


@dataclass(frozen=True)
class Source:
    """The images of a source, still encoded.

    Attributes:
        train: columns `image` (`Image(decode=False)`) and, if there are labels, `label`
            (`ClassLabel`).
        held_out: the validation or test split of the source, with the same columns, if it has one.
        held_out_from: where the held-out images come from, as in "the split test"; None: from the
            training images, by their content.
        classes_from: where the classes come from, as in "the folders" or "the column label".
        no_classes_because: why there are no classes; None if there are some.
        notes: one line on everything that the user must know: what was passed over, and why.
        bad_files: one line on each file or folder that could not be read while listing.
    """

    train: Dataset
    held_out: Dataset | None
    held_out_from: str | None = None
    classes_from: str | None = None
    no_classes_because: str | None = None
    notes: tuple[str, ...] = ()
    bad_files: tuple[str, ...] = ()


def open_source(data: str) -> Source:
    """Open a source of images.

    Args:
        data: see `ImagesConfig`.

    Returns:
        The training split, and the first split named validation, val, valid or test.

    Raises:
        UserError: if the source cannot be opened, has no column of images, has labels that do not
            fit, or a row that names a file outside the source.
    """
    with quiet_datasets():
        splits, folders = _open_splits(data)
        splits = _keep_columns(_choose_splits(splits, data), data)
        if folders is not None:
            for split in splits.values():
                check_own_files(split, data, folders)
        if "label" in splits["train"].column_names:
            splits = _to_class_labels(splits, data)
    return Source(splits["train"], splits.get("held_out"))


def _open_splits(data: str) -> tuple[DatasetDict, Sequence[Path] | None]:
    """Return the splits, and the folders whose files their rows may name (None: any)."""
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
        # The Hub's errors have no common class, and only the user can mend them.
        except Exception as error:
            raise UserError(
                f"{data} is neither a folder nor a file here, and the Hub (or its cache) does not "
                f"give a data set of that name: {_one_line(error)}"
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
    # These files come from the user's own folder, so their links may lead anywhere.
    return open_image_folder(folder, images), None


def _parquet_splits(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Sort files by the split with which their name, or else a folder's name, begins."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        names = reversed(file.relative_to(folder).parts)
        matches = (SPLIT_IN_NAME.match(name.lower()) for name in names)
        split = next((match[1] for match in matches if match), "train")
        splits.setdefault(split, []).append(file)
    return splits if "train" in splits else {"train": list(files)}


def _open_parquet(splits: dict[str, list[Path]]) -> DatasetDict:
    # `datasets` reads the names as patterns, so escape brackets and the like.
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


def _choose_splits(splits: DatasetDict, data: str) -> DatasetDict:
    """Return `train` and, if there is one, `held_out`."""
    if "train" not in splits and len(splits) > 1:
        raise UserError(f"{data} has no split named train, only {', '.join(splits)}")
    train = "train" if "train" in splits else next(iter(splits))
    if not len(splits[train]):
        raise UserError(f"{data} has no training images")
    names = (name for name in HELD_OUT_SPLITS if name in splits and name != train)
    held_out = [splits[name] for name in names if len(splits[name])][:1]
    return DatasetDict(zip(("train", "held_out"), [splits[train], *held_out], strict=False))


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
    """Return whether a plain column may hold images: binary, or struct of bytes and path."""
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


def _keep_columns(splits: DatasetDict, data: str) -> DatasetDict:
    """Keep the images and the labels, as `image` and `label`."""
    features = splits["train"].features
    names = {_image_column(features, data): "image"}
    label = _label_column(features)
    if label is not None:
        names[label] = "label"
    if any(not names.keys() <= split.features.keys() for split in splits.values()):
        raise UserError(f"{data}: its held-out split lacks a column of {', '.join(names)}")
    splits = splits.select_columns(list(names))
    # Rename only what changes: the key of the cached check depends on it.
    splits = splits.rename_columns({old: new for old, new in names.items() if old != new})
    return splits.cast_column("image", Image(decode=False))


def _to_class_labels(splits: DatasetDict, data: str) -> DatasetDict:
    """Turn strings or integers into ClassLabel, and check that every row has a label."""
    feature = splits["train"].features["label"]
    if any(split.features["label"] != feature for split in splits.values()):
        raise UserError(f"{data}: training and held-out labels differ in type or in class names")
    columns = {name: split.data.column("label").to_pylist() for name, split in splits.items()}
    values = [value for column in columns.values() for value in column]
    is_class = isinstance(feature, ClassLabel)
    missing = values.count(None) + (values.count(-1) if is_class else 0)
    if missing:
        raise UserError(f"{data}: {missing} rows have no label; fill them or drop the column")
    if is_class:
        return splits
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    feature = ClassLabel(names=[str(value) for value in numbers])
    for name, split in splits.items():
        labels = np.array([numbers[value] for value in columns[name]], np.int64)
        splits[name] = split.remove_columns("label").add_column("label", labels, feature=feature)
    return splits


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
