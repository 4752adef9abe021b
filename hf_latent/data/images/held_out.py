"""Decode every image once, name those that cannot be decoded, and hold some images out."""

import hashlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher
from PIL import Image, UnidentifiedImageError

from hf_latent.data.images.pixels import decode_image
from hf_latent.data.images.sources import Source
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError

# Part of the cache's key: raise it if decode_image or content_hash returns something else.
CHECK_VERSION = 2
NAMED_BAD_IMAGES = 20


@dataclass(frozen=True)
class CheckedImages:
    """Rows of a data set whose images can be decoded.

    Attributes:
        dataset: may have other rows too.
        rows: `(n,)` int64, ascending.
        hashes: `(n,)` ASCII bytes, the rows' content hashes (64 hexadecimal digits each).
    """

    dataset: Dataset
    rows: np.ndarray
    hashes: np.ndarray

    def subset(self, places: np.ndarray) -> "CheckedImages":
        """Return the images at some places, `(m,)` int64 or `(n,)` bool."""
        return replace(self, rows=self.rows[places], hashes=self.hashes[places])


def content_hash(array: np.ndarray) -> str:
    """Return the SHA-256 of shape, dtype and pixels `(H, W, C)`, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.name}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def fingerprint(hashes: np.ndarray) -> str:
    """Return 16 hexadecimal digits for a set of images, in any order.

    They are the first of the SHA-256 of the sorted content hashes `(n,)`, one per line.
    """
    return hashlib.sha256(b"\n".join(sorted(hashes.tolist()))).hexdigest()[:16]


def check_decodable(
    dataset: Dataset, num_proc: int | None = None
) -> tuple[CheckedImages, dict[int, str]]:
    """Decode every image of a data set; the result is kept in the cache folder of `datasets`.

    A failed image is decoded again, because the cause may have passed (too many open files).

    Args:
        dataset: has a column `image` of type `Image(decode=False)`.
        num_proc: processes that decode; None: this one.

    Returns:
        The images that can be decoded; by row, one line about each that cannot.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_latent_checked_images"
    folder.mkdir(parents=True, exist_ok=True)
    # By default the cache lies beside the data, on what may be a read-only shared disk.
    key = Hasher.hash((CHECK_VERSION, dataset._fingerprint))
    # Show progress in a terminal, but not in a log file.
    with nullcontext() if sys.stderr.isatty() else quiet_datasets():
        checked = dataset.map(
            _check_batch,
            batched=True,
            batch_size=100,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=Features({"hash": Value("string"), "error": Value("string")}),
            cache_file_name=str(folder / f"{key}.arrow"),
            num_proc=num_proc,
            desc="Checking every image",
        )
    hashes, found = (checked.data.column(name).to_pylist() for name in ("hash", "error"))
    errors = {}
    for row in [row for row, error in enumerate(found) if error]:
        again = _check_batch(dataset[row : row + 1], [row])
        hashes[row], error = again["hash"][0], again["error"][0]
        if error:
            errors[row] = error
    rows = np.array([row for row in range(len(dataset)) if row not in errors], np.int64)
    return CheckedImages(dataset, rows, np.array(hashes, "S64")[rows]), errors


def _check_batch(batch: dict[str, list[Any]], rows: Sequence[int]) -> dict[str, list[str]]:
    hashes, errors = [], []
    with warnings.catch_warnings():
        # Pillow only warns between its limit and twice its limit: treat both as bad images.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for row, image in zip(rows, batch["image"], strict=True):
            try:
                hashes.append(content_hash(decode_image(image["bytes"] or image["path"])))
                errors.append("")
            # Decoders raise many exception types for damaged files; treat them all as unreadable.
            except Exception as error:
                hashes.append("")
                errors.append(_describe_bad_image(image, row, error))
    return {"hash": hashes, "error": errors}


def _describe_bad_image(image: dict[str, Any] | None, row: int, error: Exception) -> str:
    if image is None or not (image["bytes"] or image["path"]):
        return f"row {row} (no image)"
    where = f"row {row}" if image["bytes"] else image["path"]
    # Pillow's own message repeats the path, or has a memory address.
    what = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{where} ({' '.join(what.split())[:150] or type(error).__name__})"


def hold_out(
    source: Source,
    validation_fraction: float = 0.05,
    on_bad_image: Literal["stop", "skip"] = "stop",
    num_proc: int | None = None,
) -> tuple[CheckedImages, CheckedImages, int]:
    """Check every image, and split by content if the source has no held-out split.

    Which images are held out depends only on their pixels, not on order, names or file format.
    Equal images stay together.

    Args:
        source: from `open_source`.
        validation_fraction: expected share of the images to hold out, between 0 and 1.
        on_bad_image: `stop` refuses a source with bad images, `skip` leaves them out.
        num_proc: processes that decode; None: this one.

    Returns:
        The training images, the held-out images (at least one each), and the number of bad images.

    Raises:
        UserError: if an image is bad and not skipped, or a side would be empty.
    """
    train, bad = check_decodable(source.train, num_proc)
    errors = list(bad.values())
    if source.held_out is not None:
        validation, bad = check_decodable(source.held_out, num_proc)
        errors += [f"held-out {error}" for error in bad.values()]
    if errors and on_bad_image == "stop":
        rest = len(errors) - NAMED_BAD_IMAGES
        count = "1 image" if len(errors) == 1 else f"{len(errors)} images"
        raise UserError(
            f"{count} cannot be used: {'; '.join(errors[:NAMED_BAD_IMAGES])}"
            f"{f'; and {rest} more' if rest > 0 else ''}. "
            "Repair or remove them, or pass --on_bad_image skip"
        )
    if source.held_out is None:
        chosen = choose_held_out(train.hashes, validation_fraction)
        train, validation = train.subset(~chosen), train.subset(chosen)
    if not len(train.rows) or not len(validation.rows):
        raise UserError(
            f"{len(train.rows)} images to train on and {len(validation.rows)} held out: both "
            "need at least one; give more different images or another --validation_fraction"
        )
    return train, validation, len(errors)


def choose_held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Choose the images whose hash, read as a number between 0 and 1, is below `fraction`.

    If there is none, choose the smallest hash (with its duplicates).

    Args:
        hashes: `(n,)` ASCII bytes, content hashes.
        fraction: between 0 and 1.

    Returns:
        `(n,)` bool.
    """
    digits = hashes.tolist()
    chosen = np.array([int(x[:16], 16) / 2**64 < fraction for x in digits], bool)
    return chosen if chosen.any() else hashes == min(digits, default=b"")
