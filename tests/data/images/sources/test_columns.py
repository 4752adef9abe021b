import datetime
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from hf_latent.errors import UserError
from tests.data.images.image_folders import opened


def png(value):
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(file, count, **columns):
    table = {"image": [png(value) for value in range(count)], **columns}
    pq.write_table(pa.table(table), file)
    return file


def found(tmp_path, label, **choice):
    """Names of the classes, and each image's number; or why there are none."""
    source = opened(write(tmp_path / "data.parquet", len(label), label=label), **choice)
    if source.no_classes_because is not None:
        assert source.train.column_names == ["image"]
        return source.no_classes_because
    assert source.classes_from == "the column label"
    return source.train.features["label"].names, source.train["label"][:]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, True], (["False", "True"], [1, 0, 1])),
        ([1.0, 0.0, 10.0], (["0", "1", "10"], [1, 0, 2])),
        ([10, 2, 10], (["2", "10"], [1, 0, 1])),
        (["10", "2", "10"], (["2", "10"], [1, 0, 1])),
        (["b", "a", "B"], (["B", "a", "b"], [2, 1, 0])),
        (["x10", "x2", "x10"], (["x10", "x2"], [0, 1, 0])),
        (["caf\u00e9", "cafe\u0301", "bar"], (["bar", "caf\u00e9"], [1, 1, 0])),
        (pa.array(["b", "a", "b"]).dictionary_encode(), (["a", "b"], [1, 0, 1])),
        (pa.array([3, 1, 3], pa.uint8()), (["1", "3"], [1, 0, 1])),
    ],
)
def test_values_that_are_classes(tmp_path, values, expected):
    assert found(tmp_path, values) == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5, 1.0, 2.0], "the column label holds numbers that are not whole, such as 0.5"),
        ([float("inf"), 1.0], "the column label holds numbers that are not whole, such as inf"),
        ([[0, 1], [1], []], "the column label holds lists"),
        ([{"a": 1}, {"a": 2}], "the column label holds records of a"),
        ([datetime.date(2020, 1, 1)] * 2, "the column label holds values of type date32"),
        ([-1, -1, -1], "the column label is empty or -1 for every image"),
        ([-1.0, None, float("nan")], "the column label is empty or -1 for every image"),
        (["", None, " "], "the column label is empty or -1 for every image"),
        (pa.nulls(3), "the column label is empty or -1 for every image"),
        ([7, 7, 7], "the column label has only one class, 7"),
        (["cat", "cat"], "the column label has only one class, cat"),
    ],
)
def test_values_that_are_no_classes(tmp_path, values, reason):
    assert found(tmp_path, values) == reason
    with pytest.raises(UserError, match="--label_column label: the column label"):
        found(tmp_path, values, label_column="label")


@pytest.mark.parametrize(
    "values", [[0, -1], [1, None], ["a", None], ["a", ""], [0.0, float("nan")], [True, None]]
)
def test_some_images_without_a_label_are_refused(tmp_path, values):
    with pytest.raises(UserError, match=r"1 of 2 images have no label .*--label_column none"):
        found(tmp_path, values)
    assert found(tmp_path, values, label_column="none") == "--label_column is none"


@pytest.mark.parametrize("kind", [int, float, "image {}".format])
def test_ids_and_measurements_are_no_classes(tmp_path, kind):
    values = [kind(value) for value in range(30)]
    reason = found(tmp_path, values)
    assert reason.startswith("the column label has 30 different values in 30 rows")
    names, _ = found(tmp_path, values, label_column="label")
    assert len(names) == 30
    assert len(found(tmp_path, values[:15] * 2)[0]) == 15
    assert len(found(tmp_path, values[:10])[0]) == 10


def test_held_out_images_without_labels_are_refused(tmp_path):
    write(tmp_path / "train.parquet", 2, label=[0, 1])
    write(tmp_path / "test.parquet", 2, label=[-1, -1])
    with pytest.raises(UserError, match="all held-out images; --validation_split none"):
        opened(tmp_path)
    assert opened(tmp_path, validation_split="none").train["label"][:] == [0, 1]
    assert opened(tmp_path, label_column="none").no_classes_because == "--label_column is none"


@pytest.mark.parametrize(
    "name",
    [
        *("label", "labels", "class", "target", "category", "cls", "class_label", "fine_label"),
        *("Label", "CATEGORY", "class_id"),
    ],
)
def test_names_of_label_columns(tmp_path, name):
    source = opened(write(tmp_path / "a.parquet", 2, width=[4, 4], **{name: ["cat", "dog"]}))
    assert source.train.features["label"].names == ["cat", "dog"]
    assert source.classes_from == f"the column {name}"
    assert source.notes == ("columns not used: width",)


def test_a_usable_column_is_preferred(tmp_path):
    file = write(tmp_path / "a.parquet", 2, label=[[1], [2]], target=["x", "y"])
    assert opened(file).train.features["label"].names == ["x", "y"]


def test_other_columns_are_named(tmp_path):
    file = write(tmp_path / "a.parquet", 2, breed=["x", "y"], text=["a", "b"])
    source = opened(file)
    assert source.no_classes_because.endswith("only breed, text: name one with --label_column")
    assert opened(file, label_column="breed").train.features["label"].names == ["x", "y"]
    with pytest.raises(UserError, match=r"no column race \(--label_column\).*breed, text"):
        opened(file, label_column="race")


def save(folder, **columns):
    features = Features({"label": ClassLabel(names=["a", "b"])})
    features |= {name: Image() for name in columns}
    rows = {
        name: [{"bytes": png(value), "path": None} for value in values]
        for name, values in columns.items()
    }
    Dataset.from_dict({"label": [0, 1], **rows}, features=Features(features)).save_to_disk(folder)
    return folder


def grey(source):
    return [PILImage.open(io.BytesIO(x["bytes"])).getpixel((0, 0)) for x in source.train["image"]]


def test_a_column_named_image_is_preferred(tmp_path):
    source = opened(save(tmp_path / "a", conditioning_image=[1, 2], image=[3, 4]))
    assert grey(source) == [3, 4]
    assert source.notes[0] == (
        "columns of images: conditioning_image, image; image is used (--image_column)"
    )
    chosen = opened(tmp_path / "a", image_column="conditioning_image")
    assert grey(chosen) == [1, 2] and chosen.train["label"][:] == [0, 1]
    assert grey(opened(save(tmp_path / "b", mask=[5, 6]))) == [5, 6]


def test_bytes_of_any_name_can_be_chosen(tmp_path):
    pq.write_table(pa.table({"content": [png(1), png(2)]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column of images, only content: .*--image_column"):
        opened(tmp_path / "a.parquet")
    assert grey(opened(tmp_path / "a.parquet", image_column="content")) == [1, 2]
    with pytest.raises(UserError, match=r"no column other \(--image_column\), only content"):
        opened(tmp_path / "a.parquet", image_column="other")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (["aGVsbG8="], "base64 text"),
        (["data:image/png;base64,aGVsbG8="], "base64 text"),
        (["https://example.com/a.png"], "addresses, such as 'https://example.com/a.png'"),
        (["photos/a.jpg"], "paths, such as 'photos/a.jpg'"),
        (["a cat on a mat"], "text"),
        ([7], "values of type int64"),
        ([[0, 1]], "lists"),
    ],
)
@pytest.mark.parametrize("choice", [{}, {"image_column": "image"}])
def test_a_column_of_something_else_is_named_as_that(tmp_path, values, what, choice):
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="store the images themselves") as caught:
        opened(tmp_path / "a.parquet", **choice)
    assert f"column image holds {what}, not encoded images" in str(caught.value)


def split(*levels):
    rows = {"image": [{"bytes": png(value), "path": None} for value in levels]}
    return Dataset.from_dict(rows, features=Features({"image": Image()}))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 2, "test": 0}, ([0, 1], None)),
        ({"train": 2, "test": 1, "validation": 0}, ([0, 1], "the split test")),
        ({"train": 0, "test": 2}, "no training split, only test"),
        ({"train": 0, "test": 0}, "no training images: its splits are empty"),
        ({"test": 2}, "no training split, only test"),
        ({"a": 2, "b": 1}, "no training split, only a, b"),
    ],
)
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_empty_and_lacking_splits(tmp_path, sizes, expected, kind):
    if kind == "saved":
        splits = DatasetDict({x: split(*range(n)) for x, n in sizes.items()})
        # datasets 5.1 divides by 0 where it chooses the number of files of an empty split.
        splits.save_to_disk(tmp_path / "data", num_shards=dict.fromkeys(sizes, 1))
    else:
        (tmp_path / "data").mkdir()
        for name, size in sizes.items():
            write(tmp_path / "data" / f"{name}.parquet", size)
        if "a" in sizes:  # names of files say nothing
            expected = ([0, 1, 0], None)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as caught:
            opened(tmp_path / "data")
        assert "\n" not in str(caught.value)
        return
    source = opened(tmp_path / "data")
    assert (grey(source), source.held_out_from) == expected
    empty = [name for name, size in sizes.items() if not size]
    assert source.notes == ((f"empty splits: {empty[0]}",) if empty else ())


@pytest.mark.parametrize(
    "names", ["train_set-0 test_set-0", "data/Training/0 data/Testing/0", "train2017 val2017"]
)
def test_parquet_files_by_split(tmp_path, names):
    for number, name in enumerate(names.split()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"{name}.parquet", number + 1)
    source = opened(tmp_path)
    assert (len(source.train), len(source.held_out)) == (1, 2)


def test_flags_name_parquet_files(tmp_path):
    for number, name in enumerate(("fold1-0", "fold1-1", "fold2", "sub/fold3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.parquet", number + 1)
    source = opened(tmp_path, train_split="fold1", validation_split="fold3")
    assert (len(source.train), len(source.held_out)) == (3, 4)
    assert source.notes == ("splits not used: other files",)
    assert len(opened(tmp_path, train_split="sub").train) == 4


def test_images_beside_parquet_files_are_told(tmp_path):
    write(tmp_path / "a.parquet", 2)
    (tmp_path / "b.png").write_bytes(png(1))
    assert "1 image files beside the parquet files are not used" in opened(tmp_path).notes


def test_a_held_out_split_without_the_column_is_refused(tmp_path):
    write(tmp_path / "train.parquet", 2, label=["a", "b"])
    write(tmp_path / "test.parquet", 2)
    with pytest.raises(UserError, match=r"held-out split has no column label: .*none"):
        opened(tmp_path)


def test_saved_splits_with_paths_for_names_are_refused(tmp_path):
    split(1).save_to_disk(tmp_path / "private")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["../private"]}')
    with pytest.raises(UserError, match="names no splits"):
        opened(tmp_path / "data")


def test_integer_types_may_differ_between_splits(tmp_path):
    write(tmp_path / "train.parquet", 2, label=pa.array([5, 1], pa.int32()))
    write(tmp_path / "test.parquet", 1, label=pa.array([5], pa.int64()))
    source = opened(tmp_path)
    assert source.train["label"][:] == [1, 0] and source.held_out["label"][:] == [1]
    write(tmp_path / "test.parquet", 1, label=["five"])
    with pytest.raises(UserError, match="labels of its splits differ in type"):
        opened(tmp_path)
