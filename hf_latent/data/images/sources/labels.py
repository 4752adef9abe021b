"""Number the classes of a source, or say why it has none."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np
from datasets import ClassLabel

from hf_latent.data.images.sources.splits import NONE
from hf_latent.errors import UserError

FEWEST_IDS = 10


class NoClassesError(Exception):
    """Why a source has no classes."""


@dataclass(frozen=True)
class Labels:
    """What a source says of the class of each image.

    Attributes:
        values: by split, one value an image: a class name or a number; None, NaN, -1 and an empty
            string mean 'no label'.
        where: as in "the column label".
        declared: the names of the classes, if the values are their numbers.
        may_be_ids: the values may be something else than classes, because nobody named the column.
    """

    values: Mapping[str, Sequence[Any]]
    where: str
    declared: ClassLabel | None = None
    may_be_ids: bool = False


def sort_classes(names: set[Any]) -> list[Any]:
    """Sort class names, or class numbers; names that are all digits as numbers."""
    numeric = all(isinstance(name, str) and name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numeric else (name,))


def number_classes(
    labels: Labels, where: str
) -> tuple[list[str], dict[str, np.ndarray], list[str]]:
    """Number the classes of a source.

    Args:
        labels: the values of all splits.
        where: the source, for messages.

    Returns:
        The names of the classes; by split `(n,)` int64, the number of each image's class; notes.

    Raises:
        NoClassesError: if the values are no classes.
        UserError: if only some images have a label, or splits differ in the type of their labels.
    """
    every = [value for split in labels.values.values() for value in split]
    if any(isinstance(value, list | tuple) for value in every):
        raise NoClassesError(f"{labels.where} holds lists, and an image has one class at most")
    known = {value: _to_class(value, labels.where) for value in set(every)}
    classes: set[Any] = {value for value in known.values() if value is not None}
    if not classes:
        raise NoClassesError(f"{labels.where} is empty or -1 for every image")
    _check_all_labelled(labels, known, where)
    if len({type(value) for value in classes}) > 1:
        raise UserError(f"{where}: the labels of its splits differ in type ({labels.where})")
    if labels.declared is not None:
        names, number_of = labels.declared.names, {value: value for value in classes}
    else:
        ordered = sort_classes(classes)
        names = [str(value) for value in ordered]
        number_of = {value: number for number, value in enumerate(ordered)}
    if len(names) < 2:
        raise NoClassesError(f"{labels.where} has only one class, {names[0]}")
    if labels.may_be_ids and len(names) > max(FEWEST_IDS, len(every) / 2):
        raise NoClassesError(
            f"{labels.where} has {len(names)} different values in {len(every)} rows, as ids and "
            "measurements have: --label_column takes them as classes"
        )
    numbers = {
        split: np.array([number_of[known[value]] for value in column], np.int64)
        for split, column in labels.values.items()
    }
    forms = Counter(value for value in known.values() if isinstance(value, str))
    merged = ", ".join(name for name, count in sorted(forms.items()) if count > 1)
    notes = [f"classes written in several Unicode forms, taken as one: {merged}"] if merged else []
    return names, numbers, notes


def _to_class(value: Any, where: str) -> bool | int | str | None:
    """Return a value in the form in which equal classes are equal; None: no label."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return normalize("NFC", value) if value.strip() else None
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        kind = "numbers that are not whole" if isinstance(value, float) else type(value).__name__
        raise NoClassesError(f"{where} holds {kind}, such as {value}")
    return None if value == -1 else value


def _check_all_labelled(labels: Labels, known: dict[Any, Any], where: str) -> None:
    missing = {
        split: sum(known[value] is None for value in column)
        for split, column in labels.values.items()
    }
    total = sum(missing.values())
    if not total:
        return
    count = sum(len(column) for column in labels.values.values())
    unlabelled = [x for x, column in labels.values.items() if missing[x] == len(column)]
    advice = f"fill them, or pass --label_column {NONE} to do without classes"
    if unlabelled == ["held_out"]:
        advice = f"these are all held-out images; --validation_split {NONE} holds out others"
        advice += f", --label_column {NONE} does without classes"
    raise UserError(f"{where}: {total} of {count} images have no label in {labels.where}: {advice}")
