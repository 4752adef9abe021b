"""Class labels and names of classes to the numbers that the denoiser knows them by."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

Labels: TypeAlias = int | str | Sequence[int | str] | torch.Tensor | np.ndarray


def to_label_ids(
    class_labels: Labels, num_classes: int | None, id2label: dict[int, str]
) -> list[int]:
    """Translate labels or class names into numbers.

    Args:
        class_labels: one or several; a name comes before a number that is written the same.
        num_classes: of the model; None: it has none.
        id2label: the classes' names by label, or empty.

    Returns:
        Numbers from 0 to `num_classes - 1`.

    Raises:
        ValueError: for what is not in the model.
    """
    if num_classes is None:
        raise ValueError("this model has no classes: ask for num_images without class_labels")
    if isinstance(class_labels, torch.Tensor | np.ndarray):
        class_labels = class_labels.flatten().tolist()
    elif isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
        class_labels = [class_labels]
    numbers = range(num_classes)
    label_of = {str(label): label for label in numbers}
    label_of |= {name: label for label, name in id2label.items()}  # names come first
    label_ids = [label_of.get(x, -1) if isinstance(x, str) else x for x in class_labels]
    for label, label_id in zip(class_labels, label_ids, strict=True):
        if label_id not in numbers:
            names = (id2label and f", or one of {', '.join(id2label.values())}") or ""
            raise ValueError(
                f"class label {label} is not in the model: "
                f"use a number from 0 to {num_classes - 1}{names}"
            )
    return [int(label_id) for label_id in label_ids]
