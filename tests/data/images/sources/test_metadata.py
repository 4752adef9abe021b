import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_latent.errors import UserError
from tests.data.images.image_folders import opened, write


def write_metadata(file, **columns):
    if file.suffix == ".parquet":
        pq.write_table(pa.table(columns), file)
        return
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    if file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        lines = [",".join(columns), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines), encoding="utf-8-sig")


def classes(split):
    return [split.features["label"].names[label] for label in split["label"][:]]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_labels_are_read(tmp_path, ending):
    write(tmp_path, "a.png", "b.png", "sub/c.png")
    columns = {"file_name": ["sub/c.png", "a.png", "b.png"], "label": ["dog", "cat", "dog"]}
    write_metadata(tmp_path / f"metadata.{ending}", **columns, text=["x", "y", "z"])
    source = opened(tmp_path)
    assert classes(source.train) == ["cat", "dog", "dog"]
    assert source.classes_from == f"the column label of metadata.{ending}"
    assert source.notes == (f"columns of metadata.{ending} not used: text",)


def test_each_folder_may_have_its_own(tmp_path):
    write(tmp_path, "train/a.png", "train/b.png", "test/a.png")
    write_metadata(tmp_path / "train" / "metadata.csv", file_name=["a.png", "b.png"], label=[2, 10])
    write_metadata(tmp_path / "test" / "metadata.csv", file_name=["./a.png"], label=[10])
    source = opened(tmp_path)
    assert classes(source.train) == ["2", "10"] and source.train["label"][:] == [0, 1]
    assert classes(source.held_out) == ["10"]


def test_windows_and_unicode_forms_of_paths(tmp_path):
    write(tmp_path, "sub/cafe\u0301.png", "sub/b.png")
    write_metadata(
        tmp_path / "metadata.csv", file_name=["sub\\caf\u00e9.png", "sub\\b.png"], label=["x", "y"]
    )
    assert sorted(classes(opened(tmp_path).train)) == ["x", "y"]


def test_the_label_column_can_be_named_or_left(tmp_path):
    write(tmp_path, "cat/a.png", "dog/b.png")
    rows = {"file_name": ["cat/a.png", "dog/b.png"], "breed": ["tabby", "pug"], "label": [1, 0]}
    write_metadata(tmp_path / "metadata.csv", **rows)
    assert opened(tmp_path).train["label"][:] == [1, 0]
    assert classes(opened(tmp_path, label_column="breed").train) == ["tabby", "pug"]
    assert opened(tmp_path, label_column="none").no_classes_because == "--label_column is none"
    with pytest.raises(UserError, match=r"no column race \(--label_column\).*breed, label"):
        opened(tmp_path, label_column="race")


def test_captions_alone_leave_the_folders(tmp_path):
    write(tmp_path, "cat/a.png", "dog/b.png")
    write_metadata(tmp_path / "metadata.csv", file_name=["cat/a.png", "dog/b.png"], text=["x", "y"])
    source = opened(tmp_path)
    assert classes(source.train) == ["cat", "dog"] and source.classes_from == "the folders"
    assert "only text: name one with --label_column" in source.notes[0]


def test_images_without_a_row_are_refused(tmp_path):
    write(tmp_path, "a.png", "b.png", "c.png")
    write_metadata(tmp_path / "metadata.csv", file_name=["a.png", "b.png"], label=["x", "y"])
    with pytest.raises(UserError, match=r"1 of 3 images have no label.*--label_column none"):
        opened(tmp_path)


def test_rows_without_an_image_are_told(tmp_path):
    write(tmp_path, "a.png", "b.png")
    names = ["a.png", "b.png", "c.png", ""]
    write_metadata(tmp_path / "metadata.csv", file_name=names, label=["x", "y", "x", "y"])
    source = opened(tmp_path)
    assert classes(source.train) == ["x", "y"]
    assert source.notes == ("metadata.csv: 2 rows name no image that is here, such as c.png",)


def test_several_labels_of_an_image_are_no_classes(tmp_path):
    write(tmp_path, "a.png", "b.png")
    names = ["a.png", "b.png", "a.png"]
    write_metadata(tmp_path / "metadata.csv", file_name=names, label=["x", "y", "z"])
    assert "has several values for a.png" in opened(tmp_path).no_classes_because


@pytest.mark.parametrize(
    "name",
    ["../private.png", "/etc/a.png", "sub/../../private.png", "..\\a.png", "C:\\a.png", ".."],
)
@pytest.mark.parametrize("place", ["", "sub"])
def test_paths_outside_the_folder_are_refused(tmp_path, name, place):
    write(tmp_path, "private.png", "data/a.png", "data/sub/b.png")
    write_metadata(tmp_path / "data" / place / "metadata.csv", file_name=[name], label=["x"])
    with pytest.raises(UserError, match=r"row 0 names .* not in the file's own folder") as caught:
        opened(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_file_without_file_name_is_told(tmp_path):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name;label\na.png;x\nb.png;y\n")
    reason = opened(tmp_path).no_classes_because
    assert "metadata.csv is not used: it has no column file_name, only file_name;label" in reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", b""),
        ("metadata.csv", b"file_name,label\na.png\n"),
        ("metadata.jsonl", b'{"file_name": "a.png", '),
        ("metadata.parquet", b"no parquet"),
        ("metadata.csv", b"file_name,label\n\xff.png,x\n"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read .*--label_column none") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(opened(tmp_path, label_column="none").train) == 2
