import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_latent.data.images.folder import list_images, open_image_folder
from hf_latent.errors import UserError


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / path)
    return root


def opened(folder):
    return open_image_folder(folder, list_images(folder))


def names(split, folder):
    return [str(Path(row["path"]).relative_to(folder)) for row in raw(split)]


def raw(split):
    return split.data.column("image").to_pylist()


def test_lists_only_images_sorted(tmp_path):
    write(tmp_path, "b.JPG", "a/x.TIFF", "a/deep/er/y.webp", "c.PNG", "[odd] name*.png")
    write(tmp_path, ".hidden.png", ".ipynb_checkpoints/z.png", "__MACOSX/w.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = list_images(tmp_path)
    assert found == sorted(["b.JPG", "a/x.TIFF", "a/deep/er/y.webp", "c.PNG", "[odd] name*.png"])


def test_file_names_make_no_splits(tmp_path):
    folder = write(tmp_path / "my test data", "sample_test_1.png", "a.png", "validation.png")
    splits = opened(folder)
    assert list(splits) == ["train"]
    assert names(splits["train"], folder) == ["a.png", "sample_test_1.png", "validation.png"]


def test_only_paths_are_stored(tmp_path):
    write(tmp_path, "a.png")
    assert raw(opened(tmp_path)["train"]) == [{"bytes": None, "path": str(tmp_path / "a.png")}]


def test_class_subfolders_give_sorted_labels(tmp_path):
    write(tmp_path, "dog/1.png", "cat/2.png", "dog/deeper/3.png")
    train = opened(tmp_path)["train"]
    assert train.features["label"].names == ["cat", "dog"]
    assert names(train, tmp_path) == ["cat/2.png", "dog/1.png", "dog/deeper/3.png"]
    assert train["label"][:] == [0, 1, 1]


@pytest.mark.parametrize(
    "paths", [["cat/1.png"], ["1.png", "cat/2.png", "dog/3.png"], ["1.png", "2.png"]]
)
def test_labels_need_two_classes_and_a_class_for_every_image(tmp_path, paths):
    write(tmp_path, *paths)
    train = opened(tmp_path)["train"]
    assert train.column_names == ["image"]
    assert len(train) == len(paths)


@pytest.mark.parametrize("held_out", ["test", "validation", "val", "Test"])
def test_top_level_split_folders(tmp_path, held_out):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", f"{held_out}/dog/3.png")
    splits = opened(tmp_path)
    assert sorted(splits) == sorted(["train", held_out.lower()])
    assert splits["train"]["label"][:] == [0, 1]
    assert splits[held_out.lower()]["label"][:] == [1]
    assert splits["train"].features == splits[held_out.lower()].features


def test_split_words_further_down_are_classes(tmp_path):
    write(tmp_path, "fruit/test/1.png", "train/2.png", "car/3.png")
    splits = opened(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].features["label"].names == ["car", "fruit", "train"]


def test_train_folder_alone_is_the_training_split(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png")
    assert opened(tmp_path)["train"].features["label"].names == ["cat", "dog"]


def test_images_beside_split_folders_are_refused(tmp_path):
    write(tmp_path, "train/1.png", "test/2.png", "3.png")
    with pytest.raises(UserError, match="loose images beside test, train"):
        opened(tmp_path)


def test_held_out_image_of_an_unknown_class_is_refused(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/bird/3.png")
    with pytest.raises(UserError, match=r"test/bird/3\.png"):
        opened(tmp_path)


def test_classes_of_digits_are_sorted_as_numbers(tmp_path):
    write(tmp_path / "all", "1/a.png", "10/b.png", "2/c.png")
    train = opened(tmp_path / "all")["train"]
    assert train.features["label"].names == ["1", "2", "10"]
    assert names(train, tmp_path / "all") == ["1/a.png", "10/b.png", "2/c.png"]
    assert train["label"][:] == [0, 2, 1]
    write(tmp_path / "some", "1/a.png", "10/b.png", "2x/c.png")
    assert opened(tmp_path / "some")["train"].features["label"].names == ["1", "10", "2x"]


def test_circular_links_are_followed_once(tmp_path):
    folder = write(tmp_path / "images", "b/1.png", "c/2.png")
    write(tmp_path / "elsewhere", "3.png")
    (folder / "loop").symlink_to(folder)
    (folder / "b" / "up").symlink_to(folder / "b")
    (folder / "a").symlink_to(folder / "c")  # the real folder wins, though it comes later
    (folder / "d").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert list_images(folder) == ["b/1.png", "c/2.png", "d/3.png"]


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path):
    write(tmp_path, "a.png")
    try:
        (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(UserError, match=r"caf\\udce9\\n\.png' is not UTF-8") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).isascii()


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    write(tmp_path, "a.png", "b.png")
    before = opened(tmp_path)["train"]._fingerprint
    assert opened(tmp_path)["train"]._fingerprint == before
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert opened(tmp_path)["train"]._fingerprint != before
