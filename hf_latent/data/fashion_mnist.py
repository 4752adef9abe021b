"""Fashion-MNIST: the sample that ships with this package, the full set, and the sample's maker.

Make the sample again from the four original files (Debian's package `dataset-fashion-mnist`):

    python -m hf_latent.data.fashion_mnist \
        --source /usr/share/datasets/fashion-mnist --output_dir hf_latent/data/fashion_mnist_sample
"""

import argparse
import gzip
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError

CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FEATURES = Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES)})
SAMPLE_FOLDER = Path(__file__).parent / "fashion_mnist_sample"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HUB_ID = "zalando-datasets/fashion_mnist"
IDX_PREFIXES = {"train": "train", "test": "t10k"}
SAMPLE_IMAGES_PER_CLASS = {"train": 1300, "test": 200}


def load_fashion_mnist_sample() -> DatasetDict:
    """Load the built-in sample: 13,000 training and 2,000 test images.

    Returns:
        splits `train` and `test` with `image` (grey, 28 x 28, PNG) and `label` (ten classes).
    """
    files = {split: str(SAMPLE_FOLDER / f"{split}.parquet") for split in IDX_PREFIXES}
    return datasets.load_dataset("parquet", data_files=files)


def load_fashion_mnist() -> DatasetDict:
    """Load all 60,000 + 10,000 images, from Debian's folder if it is there, else from the Hub.

    Returns:
        splits `train` and `test` with the same features as the sample, whatever the source.

    Raises:
        UserError: if neither has it.
    """
    if DEBIAN_FOLDER.is_dir():
        return read_idx_folder(DEBIAN_FOLDER)
    try:
        return datasets.load_dataset(HUB_ID).cast(FEATURES)
    # Whatever goes wrong between here and the Hub is the user's to mend, not ours.
    except Exception as error:
        raise UserError(
            f"the full Fashion-MNIST is neither in {DEBIAN_FOLDER} (Debian's package "
            f"dataset-fashion-mnist) nor to be had from the Hub as {HUB_ID}: "
            f"{' '.join(str(error).split())}"
        ) from error


def read_idx_folder(folder: Path, images_per_class: dict[str, int] | None = None) -> DatasetDict:
    """Read the four original files of Fashion-MNIST (or MNIST) in a folder.

    Args:
        folder: holds `{train,t10k}-images-idx3-ubyte.gz` and `{train,t10k}-labels-idx1-ubyte.gz`.
        images_per_class: for each split, keep the first so many images of each class.

    Returns:
        splits `train` and `test`, in the original order.
    """
    splits = {}
    for split, prefix in IDX_PREFIXES.items():
        splits[split] = read_idx_pair(
            folder / f"{prefix}-images-idx3-ubyte.gz",
            folder / f"{prefix}-labels-idx1-ubyte.gz",
            images_per_class[split] if images_per_class else None,
        )
    return DatasetDict(splits)


def read_idx_pair(
    images_file: Path, labels_file: Path, images_per_class: int | None = None
) -> Dataset:
    """Read one pair of idx.gz files; the result is cached by `datasets`.

    Args:
        images_file: unsigned bytes, `(N, height, width)`.
        labels_file: unsigned bytes, `(N,)`, 0 to 9.
        images_per_class: keep the first so many images of each class; None keeps all.

    Returns:
        `image` (PNG bytes, mode L) and `label`, in the original order.

    Raises:
        UserError: if a file is missing or is not what it should be.
    """
    for file in (images_file, labels_file):
        if not file.is_file():
            raise UserError(f"{file} is missing: give the folder of the four Fashion-MNIST idx.gz")
    arguments = {
        "images_file": str(images_file),
        "labels_file": str(labels_file),
        "images_per_class": images_per_class,
        # Part of the cache's key only: a changed file is read again.
        "modified_ns": (images_file.stat().st_mtime_ns, labels_file.stat().st_mtime_ns),
    }
    try:
        return Dataset.from_generator(_encode_idx_pair, features=FEATURES, gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def read_idx(file: Path) -> np.ndarray:
    """Read one gzipped idx file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    Returns:
        uint8 array with the shape that the file's header states.

    Raises:
        UserError: if the file is not an idx.gz of unsigned bytes, or is cut short.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    # Two zero bytes, 8 for unsigned bytes, the number of axes, then each axis as big-endian int32.
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">i4"))
    if not axes or len(content) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{file} is not a whole idx file of unsigned bytes: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def first_per_class(labels: np.ndarray, images_per_class: int) -> np.ndarray:
    """Return the sorted row numbers of the first `images_per_class` images of each class."""
    rows = [np.flatnonzero(labels == label)[:images_per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def _encode_idx_pair(
    images_file: str, labels_file: str, images_per_class: int | None, modified_ns: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    images, labels = read_idx(Path(images_file)), read_idx(Path(labels_file))
    if len(images) != len(labels):
        raise UserError(f"{images_file} has {len(images)} images and {len(labels)} labels")
    rows = np.arange(len(labels))
    if images_per_class is not None:
        rows = first_per_class(labels, images_per_class)
    for row in rows:
        png = io.BytesIO()
        PILImage.fromarray(images[row]).save(png, "PNG", optimize=True)
        yield {"image": {"bytes": png.getvalue(), "path": None}, "label": int(labels[row])}


def make_sample(source: Path, output_dir: Path) -> None:
    """Write `train.parquet` and `test.parquet` of the built-in sample.

    Args:
        source: folder of the four original idx.gz files.
        output_dir: made if it is missing.

    Raises:
        UserError: if the source or one of its files is missing.
    """
    if not source.is_dir():
        raise UserError(f"--source {source} is not a folder: install dataset-fashion-mnist")
    splits = read_idx_folder(source, SAMPLE_IMAGES_PER_CLASS)
    output_dir.mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        partial = output_dir / f"{split}.parquet.partial"
        dataset.to_parquet(partial)
        os.replace(partial, output_dir / f"{split}.parquet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the sample from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_latent.data.fashion_mnist", description=make_sample.__doc__
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        with quiet_datasets():
            make_sample(options.source, options.output_dir)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
