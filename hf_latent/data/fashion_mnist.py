"""Fashion-MNIST: the sample that ships with this package, and the full set."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

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


def load_fashion_mnist_sample() -> DatasetDict:
    """Load the built-in sample: 13,000 training and 2,000 test images.

    Returns:
        Splits `train` and `test` with `image` (grey, 28 x 28, PNG) and `label` (ten classes).
    """
    files = {split: str(SAMPLE_FOLDER / f"{split}.parquet") for split in IDX_PREFIXES}
    return datasets.load_dataset("parquet", data_files=files)


def load_fashion_mnist() -> DatasetDict:
    """Load all 60,000 + 10,000 images, from Debian's folder if it exists, else from the Hub.

    Returns:
        Splits `train` and `test` with the features of the sample.

    Raises:
        UserError: if neither source has them.
    """
    if DEBIAN_FOLDER.is_dir():
        return read_idx_folder(DEBIAN_FOLDER)
    try:
        return datasets.load_dataset(HUB_ID).cast(FEATURES)
    # The Hub's errors have no common class, and only the user can mend them.
    except Exception as error:
        raise UserError(
            f"cannot load the full Fashion-MNIST: there is no {DEBIAN_FOLDER} (Debian's package "
            f"dataset-fashion-mnist), and the Hub does not give {HUB_ID}: "
            f"{' '.join(str(error).split())}"
        ) from error


def read_idx_folder(folder: Path) -> DatasetDict:
    """Read the four original files of Fashion-MNIST (or MNIST); `datasets` caches the result.

    Args:
        folder: holds `{train,t10k}-images-idx3-ubyte.gz` and `{train,t10k}-labels-idx1-ubyte.gz`.

    Returns:
        Splits `train` and `test` with `image` (PNG bytes, mode L) and `label` (0 to 9), in the
        original order.

    Raises:
        UserError: if a file cannot be read, or a split has unequal numbers of images and labels.
    """
    splits = DatasetDict()
    for split, prefix in IDX_PREFIXES.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if len(images) != len(labels):
            raise UserError(
                f"{folder}/{prefix}-* have {len(images)} images and {len(labels)} labels: fetch "
                "them again"
            )
        arrays = {"images": images, "labels": labels}
        splits[split] = Dataset.from_generator(_encode_images, features=FEATURES, gen_kwargs=arrays)
    return splits


def read_idx(file: Path) -> np.ndarray:
    """Read one gzipped idx file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    Returns:
        uint8, in the shape that the file's header states.

    Raises:
        UserError: if the file is cut short, or no idx.gz of unsigned bytes.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): give the folder of the four Fashion-MNIST idx.gz"
        ) from error
    # Header: two zero bytes, 8 (unsigned bytes), number of axes, each axis as big-endian int32.
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">i4"))
    if not axes or len(content) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{file} is no whole idx file of unsigned bytes: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _encode_images(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    for image, label in zip(images, labels, strict=True):
        png = io.BytesIO()
        PILImage.fromarray(image).save(png, "PNG", optimize=True)
        yield {"image": {"bytes": png.getvalue(), "path": None}, "label": int(label)}
