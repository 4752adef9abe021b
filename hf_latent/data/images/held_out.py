"""Before training: decode every image once, name the bad ones, and hold some images out."""

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

# Part of the cache's key: raise it when decode_image or content_hash changes what it returns.
CHECK_VERSION = 2
NAMED_BAD_IMAGES = 20


@dataclass(frozen=True)
class CheckedImages:
    """Images that can be decoded, or some of them.

    Attributes:
        dataset: has them, maybe among others.
        rows: `(n,)` int64, ascending.
        hashes: `(n,)` ASCII bytes, the rows' content hashes (64 hexadecimal digits each).
    """

    dataset: Dataset
    rows: np.ndarray
    hashes: np.ndarray

    def take(self, places: np.ndarray) -> "CheckedImages":
        """Return the images at some places, `(m,)` int64 or `(n,)` bool."""
        return replace(self, rows=self.rows[places], hashes=self.hashes[places])


@dataclass(frozen=True)
class HeldOut:
    """Which images train and which are held out.

    Attributes:
        train: the images to train on, at least one.
        validation: those held out, at least one.
        bad_images: how many images were skipped.
    """

    train: CheckedImages
    validation: CheckedImages
    bad_images: int


def content_hash(array: np.ndarray) -> str:
    """Hash decoded pixels, so that a picture that was encoded again keeps its hash.

    Args:
        array: `(H, W, C)` uint8 or uint16, as from `decode_image`.

    Returns:
        sha256 of size, channels, bit depth and pixels, 64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{array.shape} {array.dtype.name}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def fingerprint(hashes: np.ndarray) -> str:
    """Return what stands for a set of images, in whatever order.

    Args:
        hashes: `(n,)` array of ASCII bytes, their content hashes.

    Returns:
        The first 16 hexadecimal digits of the sha256 of the sorted hashes, one a line.
    """
    return hashlib.sha256(b"\n".join(sorted(hashes.tolist()))).hexdigest()[:16]


def check_images(
    dataset: Dataset, num_proc: int | None = None
) -> tuple[CheckedImages, dict[int, str]]:
    """Decode every image of a data set; the result is cached under `datasets`' own cache folder.

    Args:
        dataset: has a column `image` of type `Image(decode=False)`.
        num_proc: processes to decode with; None decodes in this one.

    Returns:
        The good images; and for each bad row, what is wrong with which file or row, in one line.
        Only good images are taken from the cache: what made another one fail may have passed (too
        many open files, say), so it is decoded again.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_latent_checked_images"
    folder.mkdir(parents=True, exist_ok=True)
    # A file of our own choice, because the default place is beside the data, which may be
    # read-only (a data set on a shared disk).
    key = Hasher.hash((CHECK_VERSION, dataset._fingerprint))
    # A long check shows its progress to a person, but not to a log file.
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
        # Pillow only warns below twice its limit; a bad image is the right word from the limit on.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for row, image in zip(rows, batch["image"], strict=True):
            try:
                hashes.append(content_hash(decode_image(image["bytes"] or image["path"])))
                errors.append("")
            # A damaged file makes decoders raise nearly anything, and each is the same news.
            except Exception as error:
                hashes.append("")
                errors.append(_describe(image, row, error))
    return {"hash": hashes, "error": errors}


def _describe(image: dict[str, Any] | None, row: int, error: Exception) -> str:
    if image is None or not (image["bytes"] or image["path"]):
        return f"row {row} (no image)"
    where = f"row {row}" if image["bytes"] else image["path"]
    # Pillow adds the path again, or a memory address.
    what = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{where} ({' '.join(what.split())[:150] or type(error).__name__})"


def hold_out(
    source: Source,
    validation_fraction: float = 0.05,
    on_bad_image: Literal["stop", "skip"] = "stop",
    num_proc: int | None = None,
) -> HeldOut:
    """Check every image, and split by content if the source has no held-out split of its own.

    Which images are held out depends on their pixels alone: not on their order, their names or
    their encoding, and equal images stay together.

    Args:
        source: as from `open_source`.
        validation_fraction: expected share of the images to hold out, between 0 and 1.
        on_bad_image: `stop` refuses a source with bad images, `skip` leaves them out.
        num_proc: processes to decode with; None decodes in this one.

    Raises:
        UserError: if an image is bad (and they are not skipped), or one side would be empty.
    """
    train, bad = check_images(source.train, num_proc)
    errors = list(bad.values())
    if source.held_out is not None:
        validation, bad = check_images(source.held_out, num_proc)
        errors += [f"held-out {error}" for error in bad.values()]
    if errors and on_bad_image == "stop":
        rest = len(errors) - NAMED_BAD_IMAGES
        raise UserError(
            f"{len(errors)} images cannot be used: {'; '.join(errors[:NAMED_BAD_IMAGES])}"
            f"{f'; and {rest} more' if rest > 0 else ''}. "
            "Repair or remove them, or pass --on_bad_image skip"
        )
    if source.held_out is None:
        chosen = choose_held_out(train.hashes, validation_fraction)
        train, validation = train.take(~chosen), train.take(chosen)
    if not len(train.rows) or not len(validation.rows):
        raise UserError(
            f"{len(train.rows)} images to train on and {len(validation.rows)} held out: both "
            "need at least one; give more different images or another --validation_fraction"
        )
    return HeldOut(train, validation, len(errors))


def choose_held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Hold out the images whose hash, read as a number between 0 and 1, is below `fraction`.

    If there is none, the smallest hash is held out (with its duplicates).

    Args:
        hashes: `(n,)` ASCII bytes, content hashes.
        fraction: between 0 and 1.

    Returns:
        `(n,)` bool, which images are held out.
    """
    digits = hashes.tolist()
    chosen = np.array([int(x[:16], 16) / 2**64 < fraction for x in digits], bool)
    return chosen if chosen.any() else hashes == min(digits, default=b"")
