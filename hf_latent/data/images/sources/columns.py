"""Which column of a table holds the images, which the labels, and which the captions."""

import os
import re
from collections.abc import Mapping

from datasets import Array2D, Array3D, ClassLabel, Dataset, Image, LargeList, List, Value
from datasets.features.features import FeatureType

from hf_latent.data.images.formats import ENDINGS
from hf_latent.data.images.sources.labels import NoClassesError
from hf_latent.data.images.sources.splits import NONE
from hf_latent.errors import UserError

IMAGE_COLUMNS = ("image", "images", "img", "pixel_values", "picture", "photo", "png", "jpg", "jpeg")
LABEL_COLUMNS = (
    *("label", "labels", "class", "target", "category", "cls", "class_label", "fine_label"),
    *("class_name", "label_name", "class_id", "label_id", "category_id", "y"),
)
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "prompts", "description")


def _by_name(features: Mapping[str, FeatureType], known: tuple[str, ...]) -> list[str]:
    """Return the columns with known names, in the order of these; upper case is the same."""
    return [name for wanted in known for name in features if name.lower() == wanted]


def choose_image_column(dataset: Dataset, where: str, wanted: str | None) -> tuple[str, list[str]]:
    """Choose the column of images.

    Args:
        dataset: the training split.
        where: the source, for messages.
        wanted: the column that the user named; None: the first with a known name, images of
            `datasets` before plain bytes.

    Returns:
        Its name, and notes. It may be a column of arrays, see `array_dtype`.

    Raises:
        UserError: if there is none.
    """
    features = dataset.features
    if wanted is not None and wanted not in features:
        raise UserError(
            f"{where} has no column {wanted} (--image_column), only {', '.join(features)}"
        )
    typed = {name: value for name, value in features.items() if isinstance(value, Image)}
    plain = {name: value for name, value in features.items() if _holds_bytes(value)}
    arrays = {name: value for name, value in features.items() if array_dtype(value)}
    found = [*_by_name(typed, IMAGE_COLUMNS), *typed, *_by_name(plain | arrays, IMAGE_COLUMNS)]
    if wanted is not None:
        found = [name for name in (wanted,) if name in typed | plain | arrays]
    if found:
        several = f"columns of images: {', '.join(typed)}; {found[0]} is used (--image_column)"
        return found[0], [several] if len(typed) > 1 and wanted is None else []
    for name in [wanted] if wanted is not None else _by_name(features, IMAGE_COLUMNS):
        raise UserError(
            f"{where}: column {name} holds {_describe_column(dataset, name)}, not encoded images: "
            "name another with --image_column, or store the images themselves (`datasets` does it "
            "for paths and addresses: cast_column to Image(), then save_to_disk)"
        )
    raise UserError(
        f"{where} has no column of images, only {', '.join(features)}: name one with --image_column"
    )


def _holds_bytes(feature: FeatureType) -> bool:
    """Return whether a plain column may hold images: binary, or struct of bytes and path."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def array_dtype(feature: FeatureType) -> str | None:
    """Return the type of the values of a column of 2 or 3 axes; None of another column."""
    if isinstance(feature, Array2D | Array3D):
        return feature.dtype
    axes = 0
    while isinstance(feature, List | LargeList):
        feature, axes = feature.feature, axes + 1
    return feature.dtype if axes in (2, 3) and isinstance(feature, Value) else None


def _describe_column(dataset: Dataset, name: str) -> str:
    feature = dataset.features[name]
    if not isinstance(feature, Value):
        return _describe_type(feature)
    if "string" not in feature.dtype:
        return f"values of type {feature.dtype}"
    column = dataset.data.column(name).drop_null()
    text = column[0].as_py() if len(column) else ""
    if re.match(r"[a-z][a-z0-9]+://", text):
        return f"addresses, such as {text[:60]!r}"
    if os.path.splitext(text)[1].lower() in ENDINGS:
        return f"paths, such as {text[:60]!r}"
    if text.startswith("data:") or re.fullmatch(r"(?=.{4})[A-Za-z0-9+/]*={0,2}", text):
        return "base64 text"
    return "text"


def _describe_type(feature: FeatureType) -> str:
    if isinstance(feature, Value):
        return f"values of type {feature.dtype}"
    if isinstance(feature, dict):
        return f"records of {', '.join(feature)}"
    kind = type(feature).__name__
    return (
        "lists" if kind in ("List", "LargeList", "Sequence", "list") else f"values of type {kind}"
    )


def choose_label_column(features: Mapping[str, FeatureType], where: str, wanted: str | None) -> str:
    """Choose the column of labels.

    Args:
        features: of all columns except the images.
        where: the source, for messages.
        wanted: the column that the user named, or none; None: the column label or labels, or else
            the first `ClassLabel`, or else the first with a known name.

    Raises:
        NoClassesError: if there is none, or the only ones cannot be labels.
        UserError: if the column that the user named is not there.
    """
    if wanted == NONE:
        raise NoClassesError(f"--label_column is {NONE}")
    if wanted is not None and wanted not in features:
        listed = ", ".join(features) or "none"
        raise UserError(f"{where} has no column {wanted} (--label_column); its columns: {listed}")
    known = _by_name(features, LABEL_COLUMNS)
    declared = [name for name, value in features.items() if isinstance(value, ClassLabel)]
    ordered = [*_by_name(features, LABEL_COLUMNS[:2]), *declared, *known]
    for name in [wanted] if wanted is not None else ordered:
        if _may_be_labels(features[name]):
            return name
    for name in [wanted] if wanted is not None else known:
        raise NoClassesError(f"the column {name} holds {_describe_type(features[name])}")
    if not features:
        raise NoClassesError("there is no column of labels")
    raise NoClassesError(
        f"no column has a usual name of labels ({', '.join(LABEL_COLUMNS[:5])}, ...), only "
        f"{', '.join(features)}: name one with --label_column"
    )


def choose_caption_column(
    features: Mapping[str, FeatureType], where: str, wanted: str | None
) -> str | None:
    """Choose the column of captions; None if no column has a usual name.

    Args:
        features: of all columns except the images.
        where: the source, for messages.
        wanted: the column that the user named; None: the first with a usual name that holds text.

    Raises:
        UserError: if the column that the user named is not there, or holds no text.
    """
    if wanted is None:
        known = _by_name(features, CAPTION_COLUMNS)
        return next((name for name in known if _may_be_captions(features[name])), None)
    if wanted not in features:
        listed = ", ".join(features) or "none"
        raise UserError(f"{where} has no column {wanted} (--caption_column); its columns: {listed}")
    if not _may_be_captions(features[wanted]):
        raise UserError(
            f"{where}: the column {wanted} (--caption_column) holds "
            f"{_describe_type(features[wanted])}, not text: name another"
        )
    return wanted


def _may_be_captions(feature: FeatureType) -> bool:
    """Return whether a column holds texts, or lists of them: several captions of an image."""
    if isinstance(feature, List | LargeList):
        feature = feature.feature
    return isinstance(feature, Value) and "string" in feature.dtype


def _may_be_labels(feature: FeatureType) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    kinds = ("string", "int", "float", "bool", "null", "double")
    return isinstance(feature, Value) and any(kind in feature.dtype for kind in kinds)
