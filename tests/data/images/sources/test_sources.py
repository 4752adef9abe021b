import io
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_latent.data.fashion_mnist import CLASS_NAMES
from hf_latent.data.images.sources import open_source
from hf_latent.errors import UserError


def png(value):
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def cells(*values):
    return [{"bytes": png(value), "path": None} for value in values]


def values(split):
    """The grey level of each image: these tests write images of one level."""
    contents = (cell["bytes"] or Path(cell["path"]).read_bytes() for cell in split["image"])
    return [PILImage.open(io.BytesIO(content)).getpixel((0, 0)) for content in contents]


def write_parquet(file, *levels, **columns):
    """Plain parquet without the metadata of `datasets`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells(*levels), **columns}), file)


def with_features(levels, labels, names):
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": cells(*levels), "label": labels}, features=features)


def assert_two_columns(source, names):
    for split in (source.train, source.held_out):
        if split is not None:
            assert split.column_names == (["image"] if names is None else ["image", "label"])
            assert split.features["image"] == Image(decode=False)
            assert names is None or split.features["label"].names == names


def test_built_in_sample():
    source = open_source("fashion_mnist")
    assert (len(source.train), len(source.held_out)) == (13000, 2000)
    assert_two_columns(source, CLASS_NAMES)


def test_built_in_full_set(monkeypatch):
    splits = DatasetDict(train=with_features([1, 2], [0, 1], ["a", "b"]))
    monkeypatch.setitem(open_source.__globals__["BUILT_IN"], "fashion_mnist_full", lambda: splits)
    assert values(open_source("fashion_mnist_full").train) == [1, 2]


def test_image_folder(tmp_path):
    for path, level in {"cat/a.png": 1, "dog/b_test.png": 2, "dog/c.PNG": 3}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(png(level))
    source = open_source(str(tmp_path))
    assert values(source.train) == [1, 2, 3]
    assert source.train["label"][:] == [0, 1, 1]
    assert source.held_out is None
    assert_two_columns(source, ["cat", "dog"])


def test_parquet_file_with_hub_metadata(tmp_path):
    with_features([5, 6], [1, 0], ["x", "y"]).to_parquet(tmp_path / "test [a].parquet")
    source = open_source(str(tmp_path / "test [a].parquet"))
    assert values(source.train) == [5, 6]
    assert source.train["label"][:] == [1, 0]
    assert source.held_out is None
    assert_two_columns(source, ["x", "y"])


@pytest.mark.parametrize("name", ["image", "img", "pixel_values"])
@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_plain_parquet(tmp_path, name, kind):
    column = cells(7, 8)
    if kind != "struct":
        column = pa.array([cell["bytes"] for cell in column], getattr(pa, kind)())
    table = pa.table({"caption": ["a", "b"], name: column, "size": [1, 2]})
    pq.write_table(table, tmp_path / "data.parquet")
    source = open_source(str(tmp_path / "data.parquet"))
    assert values(source.train) == [7, 8]
    assert_two_columns(source, None)


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_parquet_folder_is_split_by_file_names(tmp_path, held_out):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", 1)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", 2)
    write_parquet(tmp_path / "data" / f"{held_out}-00000-of-00001.parquet", 3)
    source = open_source(str(tmp_path))
    assert values(source.train) == [1, 2]
    assert values(source.held_out) == [3]


def test_parquet_folder_is_split_by_folder_names(tmp_path):
    write_parquet(tmp_path / "default" / "train" / "0000.parquet", 1)
    write_parquet(tmp_path / "default" / "test" / "0000.parquet", 2)
    source = open_source(str(tmp_path))
    assert (values(source.train), values(source.held_out)) == ([1], [2])


@pytest.mark.parametrize("files", [("a", "b"), ("part-0", "part-1"), ("testimony", "trainer")])
def test_parquet_folder_without_a_train_file_is_all_training(tmp_path, files):
    for level, name in enumerate(files):
        write_parquet(tmp_path / f"{name}.parquet", level)
    source = open_source(str(tmp_path))
    assert values(source.train) == [0, 1]
    assert source.held_out is None


def test_damaged_parquet_is_one_line(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"a\.parquet.*cannot be read") as caught:
        open_source(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_saved_dataset(tmp_path):
    with_features([1, 2, 3], [0, 1, 0], ["x", "y"]).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert values(source.train) == [1, 2, 3]
    assert_two_columns(source, ["x", "y"])


def test_saved_dataset_dict_prefers_validation_to_test(tmp_path):
    make = {"train": [1], "test": [2], "validation": [3]}
    splits = {name: with_features(levels, [0], ["x"]) for name, levels in make.items()}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert (values(source.train), values(source.held_out)) == ([1], [3])


def test_selected_rows_stay_selected(tmp_path):
    with_features([1, 2, 3], [0, 0, 0], ["x"]).select([2, 0]).save_to_disk(tmp_path / "saved")
    assert values(open_source(str(tmp_path / "saved")).train) == [3, 1]


def test_half_written_saved_dataset_is_refused(tmp_path):
    with_features([1], [0], ["x"]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not saved whole"):
        open_source(str(tmp_path / "saved"))


def test_splits_without_train_are_refused(tmp_path):
    splits = {name: with_features([1], [0], ["x"]) for name in ("left", "right")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="left, right"):
        open_source(str(tmp_path / "saved"))


def test_string_labels_are_sorted_over_both_splits(tmp_path):
    write_parquet(tmp_path / "train.parquet", 1, 2, 3, label=["pear", "apple", "pear"])
    write_parquet(tmp_path / "test.parquet", 4, label=["fig"])
    source = open_source(str(tmp_path))
    assert source.train["label"][:] == [2, 0, 2]
    assert source.held_out["label"][:] == [1]
    assert values(source.train) == [1, 2, 3]
    assert_two_columns(source, ["apple", "fig", "pear"])


def test_integer_labels_are_sorted_as_numbers(tmp_path):
    write_parquet(tmp_path / "train.parquet", 1, 2, 3, labels=[10, 2, 10])
    source = open_source(str(tmp_path))
    assert source.train["label"][:] == [1, 0, 1]
    assert_two_columns(source, ["2", "10"])


def test_other_class_label_column_is_found(tmp_path):
    features = Features(
        {"image": Value("string"), "img": Image(), "fine_label": ClassLabel(names=["x", "y"])}
    )
    rows = {"image": ["a", "b"], "img": cells(1, 2), "fine_label": [1, 0]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert values(source.train) == [1, 2]
    assert source.train["label"][:] == [1, 0]
    assert_two_columns(source, ["x", "y"])


@pytest.mark.parametrize("labels", [["a", None], [None, 3]])
def test_missing_labels_are_refused(tmp_path, labels):
    write_parquet(tmp_path / "train.parquet", 1, 2, label=labels)
    with pytest.raises(UserError, match="1 of 2 images have no label"):
        open_source(str(tmp_path))


def test_class_label_minus_one_is_a_missing_label(tmp_path):
    with_features([1, 2], [0, -1], ["x"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="1 of 2 images have no label"):
        open_source(str(tmp_path / "saved"))


def test_labels_that_differ_between_splits_are_refused(tmp_path):
    splits = {"train": with_features([1], [0], ["x"]), "test": with_features([2], [0], ["y"])}
    for name, split in splits.items():
        split.save_to_disk(tmp_path / "saved" / name)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="labels differ"):
        open_source(str(tmp_path / "saved"))


def test_no_image_column_lists_the_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "size": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="text, size"):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("missing", "no such folder or file"),
        ("a/b/missing", "no such folder or file"),
        ("empty", "holds no image"),
        ("texts", "holds no image"),
        ("picture.png", "not a parquet file"),
    ],
)
def test_another_source_is_refused_in_one_line(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    (tmp_path / "picture.png").write_bytes(png(1))
    with pytest.raises(UserError, match=message) as caught:
        open_source(data)
    assert data in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_unreachable_hub_id_is_one_line():
    with pytest.raises(UserError, match="someone/something is neither") as caught:
        open_source("someone/something")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_hub_id_in_the_cache_opens_offline(tmp_path, datasets_cache):
    write_parquet(tmp_path / "train.parquet", 1, 2)
    write_parquet(tmp_path / "test.parquet", 3)
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    # What a download leaves behind: cache/owner___name/config/version/hash.
    [made] = (tmp_path / "cache" / "parquet").glob("default-*/*/*/dataset_info.json")
    target = datasets_cache / "owner___name" / "default" / "0.0.0" / "abc"
    shutil.copytree(made.parent, target)
    for file in target.glob("parquet-*.arrow"):
        file.rename(target / file.name.replace("parquet-", "name-"))
    text = (target / "dataset_info.json").read_text()
    (target / "dataset_info.json").write_text(
        text.replace('"dataset_name": "parquet"', '"dataset_name": "name"')
    )
    source = open_source("owner/name")
    assert (values(source.train), values(source.held_out)) == ([1, 2], [3])
