"""The captions of a source: from a column, from a text file beside each image, or class names."""

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from hf_latent.data.images.sources.listing import Listing
from hf_latent.errors import UserError, cause_of
from hf_latent.pipeline.prompts import clean_text

AUTO = "auto"


@dataclass(frozen=True)
class Captions:
    """What a source says of the captions of each image.

    Attributes:
        values: by split, the captions of each image, which are alternatives; it may have none.
        where: as in "the column text".
    """

    values: Mapping[str, Sequence[tuple[str, ...]]]
    where: str

    def __bool__(self) -> bool:
        """Return whether a training image has a caption."""
        return any(self.values["train"])


def clean_captions(texts: str | Iterable[str | None] | None) -> tuple[str, ...]:
    """Return the captions of an image, each once, in Unicode's form NFC, with single spaces.

    Args:
        texts: one or several; None and empty texts are no captions.
    """
    several = [texts] if isinstance(texts, str) else texts or ()
    cleaned = (clean_text(text or "") for text in several)
    return tuple(dict.fromkeys(text for text in cleaned if text))


def read_text_files(listing: Listing, splits: Mapping[str, Sequence[str]]) -> Captions:
    """Read the text file beside each image that has one; each line is a caption.

    Args:
        listing: of the whole folder.
        splits: by split, the paths of the images in the listing.

    Raises:
        UserError: if a file cannot be read, is a link out of the folder, or is no UTF-8.
    """

    def read(image: str) -> tuple[str, ...]:
        stem = posixpath.splitext(image)[0]
        file = next((x for x in (f"{stem}.txt", f"{stem}.TXT") if x in listing.texts), None)
        if file is None:
            return ()
        path = os.path.join(listing.folder, file)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(listing.folder)):
            raise UserError(f"{path} is a link out of {listing.folder}: put the text in its place")
        try:
            with open(path, encoding="utf-8-sig") as lines:
                return clean_captions(lines)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is no text of captions ({cause_of(error)}): repair it, or name a "
                "--caption_column"
            ) from error

    values = {name: [read(path) for path in paths] for name, paths in splits.items()}
    return Captions(values, "the text files beside the images")


def class_captions(splits: Mapping[str, Dataset | None]) -> Captions:
    """Take the name of each image's class as its caption; none without classes.

    Args:
        splits: with a column `label` (`ClassLabel`), if there are classes.
    """
    values = {}
    for name, split in splits.items():
        if split is not None:
            label = split.features.get("label")
            names = [clean_captions(x) for x in label.names] if label else []
            numbers = split.data.column("label").to_pylist() if label else [None] * len(split)
            values[name] = [() if x is None else names[x] for x in numbers]
    return Captions(values, "the names of the classes")
