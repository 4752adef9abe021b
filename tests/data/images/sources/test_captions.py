import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.held_out import read_captions
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from tests.data.images.image_folders import opened, write


def captions_of(source) -> list[list[str]]:
    return source.train.data.column("captions").to_pylist()


@pytest.fixture
def folder(tmp_path):
    """Four images."""
    return write(tmp_path, *(f"{name}.png" for name in "abcd"))


def write_metadata(folder, rows) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_of_metadata_are_alternatives_and_empty_ones_are_none(folder):
    rows = [("a.png", "a  red\nheart "), ("a.png", "love"), ("a.png", "love"), ("b.png", "")]
    write_metadata(folder, [{"file_name": x, "text": y} for x, y in [*rows, ("c.png", None)]])
    source = opened(folder, caption_column="auto")
    assert captions_of(source) == [["a red heart", "love"], [], [], []]
    assert source.captions_from == "the column text of metadata.jsonl"
    assert not any("not used" in note for note in source.notes)


def test_lists_of_captions_and_a_named_column(folder):
    rows = [{"file_name": f"{x}.png", "text": "no", "words": [x, f"{x}{x}", None]} for x in "abcd"]
    write_metadata(folder, rows)
    source = opened(folder, caption_column="words")
    assert captions_of(source) == [["a", "aa"], ["b", "bb"], ["c", "cc"], ["d", "dd"]]
    assert captions_of(opened(folder, caption_column="auto")) == [["no"]] * 4


def test_text_files_beside_images(folder):
    (folder / "a.txt").write_text("\ufeffcafe\u0301\n\nbar\n", encoding="utf-8")
    (folder / "c.txt").write_text("")
    source = opened(folder, caption_column="auto")
    assert captions_of(source) == [["caf\u00e9", "bar"], [], [], []]
    assert source.captions_from == "the text files beside the images"


def test_names_of_classes_are_the_last_resort(tmp_path):
    write(tmp_path, "cat/1.png", "cat/2.png", "red  dog/1.png")
    source = opened(tmp_path, caption_column="auto")
    assert captions_of(source) == [["cat"], ["cat"], ["red dog"]]
    assert source.captions_from == "the names of the classes"
    assert source.train.features["label"].names == ["cat", "red  dog"]


def test_captions_and_classes_go_together(tmp_path):
    names = ("cat/1", "dog/1")
    write(tmp_path, *(f"{name}.png" for name in names))
    write_metadata(tmp_path, [{"file_name": f"{x}.png", "caption": f"a {x}"} for x in names])
    source = opened(tmp_path, caption_column="auto")
    assert captions_of(source) == [["a cat/1"], ["a dog/1"]]
    assert source.train.features["label"].names == ["cat", "dog"]


def test_a_column_of_a_table(tmp_path, folder):
    files = [str(folder / f"{x}.png") for x in "ab"]
    features = Features(
        {"image": Image(), "prompt": List(Value("string")), "label": Value("int64")}
    )
    columns = {"image": files, "prompt": [["x", "y"], []], "label": [3, 4]}
    split = Dataset.from_dict(columns, features=features)
    DatasetDict(train=split, test=split).save_to_disk(tmp_path / "saved")
    source = opened(tmp_path / "saved", caption_column="auto")
    assert captions_of(source) == [["x", "y"], []]
    assert source.held_out.data.column("captions").to_pylist() == [["x", "y"], []]
    assert source.captions_from == "the column prompt"
    assert source.train.features["label"].names == ["3", "4"]
    assert "captions" not in opened(tmp_path / "saved").train.column_names


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ([], "auto", "has no captions: give each image a row in metadata.jsonl with file_name"),
        ([{"text": ""}], "auto", "has no captions"),
        ([{"text": 3}], "text", r"the column text \(--caption_column\) holds .*int64, not text"),
        ([{"text": "x"}], "words", r"has no column words \(--caption_column\); its columns: text"),
    ],
)
def test_what_is_no_caption_is_refused(folder, rows, column, message):
    if rows:
        write_metadata(folder, [{"file_name": "a.png", **row} for row in rows])
    with pytest.raises(UserError, match=message):
        opened(folder, caption_column=column)


def test_a_text_file_that_is_no_text_is_named(folder):
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"b\.txt is no text of captions"):
        opened(folder, caption_column="auto")


def test_captions_follow_their_images_and_are_counted(tmp_path):
    for number in range(20):
        grey = np.full((4, 4), 10 * number, np.uint8)
        PILImage.fromarray(grey).save(tmp_path / f"{number:02}.png")
        (tmp_path / f"{number:02}.txt").write_text("" if number % 4 == 1 else f"image {number}")
    config = ImagesConfig(data=str(tmp_path), caption_column="auto", validation_fraction=0.3)
    splits = open_images(config)
    for images in (splits.train, splits.validation):
        brightness = (images.read().mean((1, 2, 3)) + 1) / 2 * 255
        captions = read_captions(images.dataset, images.rows)
        assert len(captions) == len(images) > 1
        for value, found in zip(brightness.tolist(), captions, strict=True):
            number = round(value / 10)
            assert found == ([] if number % 4 == 1 else [f"image {number}"])
    figures = splits.summary.figures()
    assert figures["captions"] + figures["images_without_captions"] == len(splits.train)
    assert any("from the text files beside the images" in x for x in splits.summary.lines())
