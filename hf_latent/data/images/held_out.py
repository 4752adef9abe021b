"""Decode every image once, name those that cannot be decoded, and hold some images out."""

import hashlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from PIL import Image, UnidentifiedImageError

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.measured import PICTURE_CHANNELS
from hf_latent.data.images.pixels import DecodedImage, read_image
from hf_latent.data.images.sources import Source
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError

# Part of the cache's key: raise it if the check finds something else.
CHECK_VERSION = 4
NAMED_BAD_IMAGES = 20
# What the check notes of each good image. `kind` names its pixels in the file; `channels` are those
# that it needs (an opaque alpha is not needed); `is_grey` is true if red, green and blue are equal;
# `low` and `high` are the lowest and the highest value of its colours, `lows` and `highs` those of
# each channel of a measured image; `dtype` is that of the file.
LISTS = ("lows", "highs")
FACTS: dict[str, Any] = {
    **{"kind": Value("string"), "profile": Value("string")},
    **{"height": Value("int32"), "width": Value("int32"), "frames": Value("int32")},
    **{"bits": Value("int8"), "channels": Value("int32"), "is_grey": Value("bool")},
    **{"low": Value("float64"), "high": Value("float64"), "dtype": Value("string")},
    "is_measured": Value("bool"),
    **dict.fromkeys(LISTS, List(Value("float64"))),
}
FOUND = Features({"hash": Value("string"), "error": Value("string"), **FACTS})
# Pillow's names of pixel formats, in words.
KINDS = {"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette"}


@dataclass(frozen=True)
class CheckedImages:
    """Rows of a data set whose images can be decoded.

    Attributes:
        dataset: may have other rows too.
        rows: `(n,)` int64, ascending.
        hashes: `(n,)` ASCII bytes, the rows' content hashes (64 hexadecimal digits each).
        facts: by name of `FACTS`, `(n,)` values of the rows; `lows` and `highs` are lists.
        are_measured: whether all are taken for measured images, or all for pictures.
    """

    dataset: Dataset
    rows: np.ndarray
    hashes: np.ndarray
    facts: dict[str, np.ndarray]
    are_measured: bool = False

    def subset(self, places: np.ndarray) -> "CheckedImages":
        """Return the images at some places, `(m,)` int64 or `(n,)` bool."""
        facts = {name: values[places] for name, values in self.facts.items()}
        return replace(self, rows=self.rows[places], hashes=self.hashes[places], facts=facts)


def content_hash(array: np.ndarray) -> str:
    """Return the SHA-256 of shape, dtype and pixels `(H, W, C)`, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.name}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fingerprint(hashes: np.ndarray) -> str:
    """Return 16 hexadecimal digits for a set of images, in any order.

    They are the first of the SHA-256 of the sorted content hashes `(n,)`, one per line.
    """
    return hashlib.sha256(b"\n".join(sorted(hashes.tolist()))).hexdigest()[:16]


def check_decodable(
    dataset: Dataset, config: ImagesConfig, num_proc: int | None = None
) -> tuple[CheckedImages, dict[int, str]]:
    """Decode every image of a data set; the result is kept in the cache folder of `datasets`.

    A failed image is decoded again, because the cause may have passed (too many open files).

    Args:
        dataset: has a column `image` of type `Image(decode=False)`.
        config: says how to decode.
        num_proc: processes that decode; None: this one.

    Returns:
        The images that can be used; by row, one line about each that cannot.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_latent_checked_images"
    folder.mkdir(parents=True, exist_ok=True)
    how = {
        "max_pixels": config.max_image_pixels,
        "color_profile": config.color_profile,
        "channels": config.channels,
    }
    # By default the cache lies beside the data, on what may be a read-only shared disk.
    has_tifffile = find_spec("tifffile") is not None  # it reads what Pillow reads otherwise
    key = Hasher.hash((CHECK_VERSION, how, has_tifffile, dataset._fingerprint))
    # Show progress in a terminal, but not in a log file.
    with nullcontext() if sys.stderr.isatty() else quiet_datasets():
        checked = dataset.map(
            _check_batch,
            batched=True,
            batch_size=100,
            with_indices=True,
            fn_kwargs=how,
            remove_columns=dataset.column_names,
            features=FOUND,
            cache_file_name=str(folder / f"{key}.arrow"),
            num_proc=num_proc,
            desc="Checking every image",
        )
    columns = {name: checked.data.column(name).to_pylist() for name in checked.column_names}
    errors = columns["error"]
    for row in [row for row, error in enumerate(errors) if error]:
        (again,) = _check_batch(dataset[row : row + 1], [row], **how).to_pylist()
        for name, value in again.items():
            columns[name][row] = value
    rows = np.array([row for row, error in enumerate(errors) if not error], np.int64)
    facts = {}
    for name in FACTS:
        values = [columns[name][row] for row in rows]
        facts[name] = np.fromiter(values, object) if name in LISTS else np.array(values)
    good = CheckedImages(dataset, rows, np.array(columns["hash"], "S64")[rows], facts)
    return good, {row: error for row, error in enumerate(errors) if error}


def _check_batch(
    batch: dict[str, list[Any]],
    rows: Sequence[int],
    max_pixels: int,
    color_profile: Any,
    channels: int | None,
) -> pa.Table:
    """Return hash, error and facts of every image; an error is "" for a good one."""
    found = []
    with warnings.catch_warnings():
        # Pillow only warns between its limit and twice its limit: treat both as bad images.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for row, image in zip(rows, batch["image"], strict=True):
            try:
                encoded = image["bytes"] or image["path"]
                decoded = read_image(encoded, max_pixels, color_profile, channels)
                digest = content_hash(decoded.array)
                found.append({"hash": digest, "error": "", **image_facts(decoded)})
            # Decoders raise many exception types for damaged files; treat them all as unreadable.
            except Exception as error:
                line = _describe_bad_image(image, row, _describe_error(error, max_pixels))
                found.append({"hash": "", "error": line})
    return pa.Table.from_pylist(found, FOUND.arrow_schema)


def image_facts(image: DecodedImage) -> dict[str, Any]:
    """Return what the check notes of an image, by the names of `FACTS`."""
    array = image.array
    height, width, channels = array.shape
    has_alpha = channels in (2, 4) and not image.is_measured
    colour = array[:, :, :-1] if has_alpha else array
    is_opaque = has_alpha and array[:, :, -1].min() == np.iinfo(array.dtype).max
    is_colour = colour.shape[2] == 3 and not image.is_measured
    is_grey = is_colour and len({*colour[height // 2, width // 2].tolist()}) == 1
    # Look at all pixels only if the one in the middle is grey: few are in colour images.
    if is_grey:
        is_grey = bool((colour == colour[:, :, :1]).all())
    kind = KINDS.get(image.mode, image.mode)
    if image.mode.startswith(("I", "F")):
        kind = "16-bit grey" if array.dtype == np.uint16 else "grey without a fixed range"
    if image.is_measured:
        kind = f"measured ({channels} x {image.dtype})"
    ends = [end(array, axis=(0, 1)) for end in (np.min, np.max)] if image.is_measured else [[], []]
    return {
        "kind": f"opaque {kind}" if is_opaque else kind,
        "bits": 8 * array.itemsize,
        "profile": image.profile,
        "height": height,
        "width": width,
        "channels": channels - is_opaque,
        "frames": image.frames,
        "is_grey": is_grey,
        "low": float(colour.min()),
        "high": float(colour.max()),
        "dtype": image.dtype,
        "is_measured": image.is_measured,
        "lows": list(map(float, ends[0])),
        "highs": list(map(float, ends[1])),
    }


def _describe_error(error: Exception, max_pixels: int) -> str:
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more pixels than --max_image_pixels {max_pixels}"
    # Pillow's own message repeats the path, or has a memory address.
    what = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return " ".join(what.split())[:150] or type(error).__name__


def _describe_bad_image(image: dict[str, Any] | None, row: int, what: str) -> str:
    if image is None or not (image["bytes"] or image["path"]):
        return f"row {row} (no image)"
    return f"{f'row {row}' if image['bytes'] else image['path']} ({what})"


def read_labels(dataset: Dataset, rows: np.ndarray) -> np.ndarray | None:
    """Return the class labels `(n,)` int64 of rows `(n,)`; None without labels."""
    if "label" not in dataset.column_names:
        return None
    return dataset.data.column("label").to_numpy()[rows].astype(np.int64)


def read_captions(dataset: Dataset, rows: np.ndarray) -> list[list[str]] | None:
    """Return the captions of rows `(n,)`, which are alternatives; None without captions."""
    if "captions" not in dataset.column_names:
        return None
    column = dataset.data.column("captions").to_pylist()
    return [column[row] for row in rows]


def hold_out(
    source: Source, config: ImagesConfig, num_proc: int | None = None
) -> tuple[CheckedImages, CheckedImages, int]:
    """Check every image, and split by content if the source has no held-out split.

    Which images are held out depends only on their pixels and, so that every class keeps one to
    train on, their classes; not on order, names or file format. Equal images stay together.

    Args:
        source: from `open_source`.
        config: says how to decode, whether to skip bad images, and how many to hold out.
        num_proc: processes that decode; None: this one.

    Returns:
        The training images, the held-out images (at least one each), and the number of bad images.
        If most training images are measured, all have the channels of most of them, or those of
        `config`.

    Raises:
        UserError: if an image is bad and not skipped, or a side would be empty.
    """
    train, bad = check_decodable(source.train, config, num_proc)
    channels = _measured_channels(train, config)
    train, others = _alike(train, channels)
    errors = [*source.bad_files, *bad.values(), *others]
    if source.held_out is not None:
        validation, bad = check_decodable(source.held_out, config, num_proc)
        validation, others = _alike(validation, channels)
        errors += [f"held-out {error}" for error in (*bad.values(), *others)]
    if errors and config.on_bad_image == "stop":
        rest = len(errors) - NAMED_BAD_IMAGES
        count = "1 image" if len(errors) == 1 else f"{len(errors)} images"
        raise UserError(
            f"{count} cannot be used: {'; '.join(errors[:NAMED_BAD_IMAGES])}"
            f"{f'; and {rest} more' if rest > 0 else ''}. "
            "Repair or remove them, or pass --on_bad_image skip"
        )
    if source.held_out is None:
        labels = read_labels(train.dataset, train.rows)
        chosen = choose_held_out(train.hashes, config.validation_fraction, labels)
        train, validation = train.subset(~chosen), train.subset(chosen)
    if not len(train.rows) or not len(validation.rows):
        raise UserError(
            f"{len(train.rows)} images to train on and {len(validation.rows)} held out: both "
            "need at least one; give more different images or another --validation_fraction"
        )
    return train, validation, len(errors)


def _measured_channels(images: CheckedImages, config: ImagesConfig) -> int | None:
    """Return the number of channels of measured images; None if most images are pictures."""
    if 2 * images.facts["is_measured"].sum() > len(images.rows):
        return config.channels or int(np.bincount(images.facts["channels"]).argmax())
    if config.channels not in (None, *PICTURE_CHANNELS) and len(images.rows):
        raise UserError(
            f"--channels {config.channels}: {config.data} has pictures, which become 1 (grey), 3 "
            "(RGB) or 4 channels (RGBA). Other numbers are for .npy files, and for TIFF files with "
            "as many channels or pages (pip install tifffile)"
        )
    return None


def _alike(images: CheckedImages, channels: int | None) -> tuple[CheckedImages, list[str]]:
    """Return the images that fit together, and a line about each that does not fit.

    Args:
        images: measured images and pictures.
        channels: number of channels of measured images, for which pictures of as many are taken;
            None: pictures, for which grey measured images are taken.
    """
    facts = images.facts
    if channels is None:
        fits = ~facts["is_measured"].astype(bool) | (facts["channels"] == 1)
        expected = "and most images are pictures"
    else:
        fits, expected = facts["channels"] == channels, f"not {channels}"
    others, images = images.subset(~fits), images.subset(fits)
    lines = [
        _describe_bad_image(others.dataset[row]["image"], row, f"{found} channels, {expected}")
        for row, found in zip(others.rows.tolist(), others.facts["channels"], strict=True)
    ]
    if channels is None:
        return images, lines
    facts = dict(images.facts)
    for end, ends in zip(("low", "high"), LISTS, strict=True):
        # A picture has one lowest and one highest value, of all its channels.
        filled = [x or [one] * channels for x, one in zip(facts[ends], facts[end], strict=True)]
        facts[ends] = np.fromiter(filled, object)
    return replace(images, facts=facts, are_measured=True), lines


def choose_held_out(
    hashes: np.ndarray, fraction: float, labels: np.ndarray | None = None
) -> np.ndarray:
    """Choose the images whose hash, read as a number between 0 and 1, is below `fraction`.

    The largest hash of each class is never chosen, so every class keeps an image to train on. If
    none is chosen, choose the smallest hash that may be chosen, or else the smallest of all. Equal
    hashes are chosen together.

    Args:
        hashes: `(n,)` ASCII bytes, content hashes.
        fraction: between 0 and 1.
        labels: `(n,)` int64, the images' classes; None without classes.

    Returns:
        `(n,)` bool.
    """
    below = np.array([int(x[:16], 16) / 2**64 < fraction for x in hashes.tolist()], bool)
    is_free = np.ones(len(hashes), bool)
    if labels is not None:
        order = np.lexsort((hashes, labels))
        is_last = np.diff(labels[order], append=labels.max(initial=0) + 1) != 0
        is_free = ~np.isin(hashes, hashes[order[is_last]])
    chosen = below & is_free
    if chosen.any():
        return chosen
    return hashes == min(hashes[is_free].tolist() or hashes.tolist(), default=b"")
