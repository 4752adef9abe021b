import sys

import numpy as np
import pytest
from datasets import Dataset

import make_fashion_mnist_sample
from hf_latent.data import fashion_mnist
from hf_latent.data.fashion_mnist import DEBIAN_FOLDER, SAMPLE_FOLDER, read_idx_folder
from make_fashion_mnist_sample import SampleConfig, first_per_class, make_sample
from tests import forked
from tests.data.test_fashion_mnist import pixels, write_idx_folder


def test_first_per_class_keeps_the_original_order():
    labels = np.array([1, 0, 1, 1, 0, 0, 1])
    assert first_per_class(labels, 2).tolist() == [0, 1, 2, 4]


@pytest.fixture
def original_files(tmp_path, monkeypatch):
    """Return Debian's files and the package's sample, or a small imitation of both."""
    if DEBIAN_FOLDER.is_dir():
        # The sample's images are among the first; all 70,000 take long to encode.
        read_idx = fashion_mnist.read_idx
        monkeypatch.setattr(fashion_mnist, "read_idx", lambda file: read_idx(file)[:14_000])
        return DEBIAN_FOLDER, SAMPLE_FOLDER
    source = write_idx_folder(tmp_path / "idx", {"train": 300, "t10k": 100})
    monkeypatch.setattr(make_fashion_mnist_sample, "IMAGES_PER_CLASS", {"train": 9, "test": 4})
    splits = read_idx_folder(source)
    (tmp_path / "expected").mkdir()
    for split, count in {"train": 9, "test": 4}.items():
        rows = first_per_class(np.array(splits[split]["label"]), count)
        splits[split].select(rows).to_parquet(tmp_path / "expected" / f"{split}.parquet")
    return source, tmp_path / "expected"


def test_the_package_sample_is_reproduced(original_files, tmp_path):
    source, expected = original_files
    output = tmp_path / "made"
    make_sample(SampleConfig(source=str(source), output_dir=str(output)))
    assert sorted(file.name for file in output.iterdir()) == ["test.parquet", "train.parquet"]
    for split in ("train", "test"):
        made = Dataset.from_parquet(str(output / f"{split}.parquet"))
        shipped = Dataset.from_parquet(str(expected / f"{split}.parquet"))
        assert made.features == shipped.features
        assert made["label"][:] == shipped["label"][:]
        assert np.array_equal(pixels(made), pixels(shipped))


def test_a_missing_source_is_refused_with_status_2(tmp_path):
    command = [sys.executable, make_fashion_mnist_sample.__file__]
    command += ["--source", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
    done = forked.run(command)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "none" in done.stderr
    assert not (tmp_path / "out").exists()
