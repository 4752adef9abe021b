"""Which split is for training and which is held out: one table of names for every source."""

import re
from collections.abc import Sequence

from hf_latent.errors import UserError

NONE = "none"
# In the order of preference; a validation split is preferred to a test split.
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}
# Words that do not make another thing of a split, as in train_set or val_images.
FILLERS = {"", "set", "split", "data", "images", "image", "img", "imgs"}


def split_kind(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return what a name says of a split.

    Args:
        name: of a split, a folder or a file, in upper or lower case.

    Returns:
        train, validation or test, if one word of the name says so, as in DIV2K_valid_HR, else None;
        and the other words, here ("div", "k", "hr"): none of train2017 or val_set.
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = [word.removesuffix("set") for word in re.findall(r"[^\W\d_]+", parted)]
    kinds = {KIND_OF[word] for word in words if word in KIND_OF}
    others = tuple(word for word in words if word not in KIND_OF and word not in FILLERS)
    return kinds.pop() if len(kinds) == 1 else None, others


def choose_splits(
    names: Sequence[str], where: str, train_split: str | None, validation_split: str | None
) -> tuple[str, str | None]:
    """Choose the training split and the held-out split.

    Args:
        names: of all splits that are not empty; of folders, their paths.
        where: the source, for messages.
        train_split: the name that the user gave; None: by the table.
        validation_split: the same; `none` holds out no split.

    Returns:
        The name of each; None if no split is held out.

    Raises:
        UserError: if a name is not there, or the table leaves no choice or several.
    """
    given = {"--train_split": train_split, "--validation_split": validation_split}
    for flag, name in given.items():
        if name not in (None, *names) and (flag, name) != ("--validation_split", NONE):
            raise UserError(
                f"{where} has no images in the split {name} of {flag}, but in: {_join(names)}"
            )
    if train_split is not None and train_split == validation_split:
        raise UserError(f"{where}: --train_split and --validation_split both name {train_split}")
    rest = [name for name in names if name not in given.values()]
    train = train_split or _choose(rest, "train", where, "--train_split")
    if train is None and len(rest) == 1 and split_kind(rest[0])[0] is None:
        train = rest[0]
    if train is None:
        raise UserError(
            f"{where} has no training split, only {_join(names)}: name it with --train_split, "
            "and the held-out one with --validation_split"
        )
    if validation_split is not None:
        return train, None if validation_split == NONE else validation_split
    flag = "--validation_split"
    held_out = _choose(rest, "validation", where, flag) or _choose(rest, "test", where, flag)
    return train, held_out


def _choose(names: Sequence[str], kind: str, where: str, flag: str) -> str | None:
    last = {name: name.rsplit("/", 1)[-1] for name in names}
    for known in NAMES[kind]:
        for name in names:
            if last[name].lower() == known:
                return name
    found = [name for name in names if split_kind(last[name])[0] == kind]
    if len(found) > 1:
        raise UserError(f"{where} has several {kind} splits, {_join(found)}: name one with {flag}")
    return found[0] if found else None


def describe_unused(names: Sequence[str], *used: str | None) -> list[str]:
    """Return a note on the splits that are not used; none if all are."""
    unused = [name for name in names if name not in used]
    return [f"splits not used: {_join(unused)}"] if unused else []


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(sorted(names)[:20]) + more
