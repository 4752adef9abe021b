import gzip
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict, Features, Image

from hf_latent.data import fashion_mnist
from hf_latent.data.fashion_mnist import (
    CLASS_NAMES,
    FEATURES,
    SAMPLE_FOLDER,
    load_fashion_mnist,
    load_fashion_mnist_sample,
    read_idx,
    read_idx_folder,
)
from hf_latent.errors import UserError


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def pixels(dataset):
    return np.stack([np.asarray(image) for image in dataset["image"]])


def write_idx_folder(folder, counts):
    generator = np.random.default_rng(0)
    folder.mkdir()
    for prefix, count in counts.items():
        images = generator.integers(0, 256, (count, 28, 28))
        labels = generator.integers(0, 10, count)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


@pytest.fixture
def hand_made(tmp_path):
    return write_idx_folder(tmp_path / "idx", {"train": 60, "t10k": 20})


def test_sample_has_the_documented_rows_and_features():
    sample = load_fashion_mnist_sample()
    assert {split: len(rows) for split, rows in sample.items()} == {"train": 13000, "test": 2000}
    assert np.bincount(sample["train"]["label"]).tolist() == [1300] * 10
    assert np.bincount(sample["test"]["label"]).tolist() == [200] * 10
    for split in sample.values():
        assert split.features == FEATURES
        image = split[0]["image"]
        assert (image.mode, image.size, image.format) == ("L", (28, 28), "PNG")
    assert FEATURES["label"].names == CLASS_NAMES


def test_sample_is_small_and_licensed():
    assert sum(file.stat().st_size for file in SAMPLE_FOLDER.iterdir()) <= 8e6
    assert "Copyright (c) 2017 Zalando SE" in (SAMPLE_FOLDER / "LICENSE").read_text()
    assert "Xiao, Rasul, Vollgraf" in (SAMPLE_FOLDER / "README.md").read_text()


def test_idx_reader_returns_shape_and_values(tmp_path):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / "a.gz").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array)


# Made inside the test, because gzip writes the time of day into its header.
NOT_IDX = {
    "not gzip": lambda: b"not gzip",
    "empty": lambda: gzip.compress(b""),
    "floats": lambda: gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"),
    "three of five": lambda: gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"),
    "cut short": lambda: gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde")[:-9],
}


@pytest.mark.parametrize("case", NOT_IDX)
def test_idx_reader_refuses_other_files(tmp_path, case):
    (tmp_path / "a.gz").write_bytes(NOT_IDX[case]())
    with pytest.raises(UserError, match=r"a\.gz"):
        read_idx(tmp_path / "a.gz")


def test_idx_folder_keeps_order_pixels_and_labels(hand_made):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        dataset = read_idx_folder(hand_made)[split]
        assert dataset.features == FEATURES
        images = read_idx(hand_made / f"{prefix}-images-idx3-ubyte.gz")
        assert np.array_equal(pixels(dataset), images)
        labels = read_idx(hand_made / f"{prefix}-labels-idx1-ubyte.gz")
        assert dataset["label"][:] == labels.tolist()


def test_unequal_numbers_of_images_and_labels_are_refused(hand_made):
    (hand_made / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(3)))
    with pytest.raises(UserError, match=r"idx/t10k-\* have 20 images and 3 labels"):
        read_idx_folder(hand_made)


def test_missing_idx_file_is_named(hand_made):
    (hand_made / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="t10k-labels"):
        read_idx_folder(hand_made)


def test_full_set_comes_from_debians_folder_if_it_is_there(hand_made, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", hand_made)
    splits = load_fashion_mnist()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 60, "test": 20}


def test_full_set_from_the_hub_has_the_same_features(hand_made, monkeypatch):
    local = read_idx_folder(hand_made)
    hub_names = ["T - shirt / top", *CLASS_NAMES[1:]]
    hub = local.cast(Features({"image": Image(), "label": ClassLabel(names=hub_names)}))
    asked = []

    def load_dataset(name):
        asked.append(name)
        return hub

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(fashion_mnist.datasets, "load_dataset", load_dataset)
    loaded = load_fashion_mnist()
    assert asked == ["zalando-datasets/fashion_mnist"]
    assert isinstance(loaded, DatasetDict)
    for split in ("train", "test"):
        assert loaded[split].features == FEATURES
        assert loaded[split]["label"][:] == local[split]["label"][:]
        assert np.array_equal(pixels(loaded[split]), pixels(local[split]))


def test_full_set_from_nowhere_is_one_line(monkeypatch):
    def load_dataset(name):
        raise ConnectionError("no\nway")

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(fashion_mnist.datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"/nowhere.*no way"):
        load_fashion_mnist()
