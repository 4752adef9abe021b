import os

import pytest

from hf_latent.errors import UserError
from tests.data.images.image_folders import opened, write


def names(split, folder):
    rows = split.data.column("image").to_pylist()
    assert all(row["bytes"] is None for row in rows)
    return [row["path"].removeprefix(f"{folder}/") for row in rows]


def classes(source):
    """The name of each training image's class; None without classes."""
    if source.no_classes_because is not None:
        assert source.train.column_names == ["image"] and source.classes_from is None
        return None
    feature = source.train.features["label"]
    return [feature.names[label] for label in source.train["label"][:]]


def test_file_names_make_no_splits(tmp_path):
    folder = write(tmp_path / "my test data", "sample_test_1.png", "a.png", "validation.png")
    source = opened(folder)
    assert source.held_out is None
    assert names(source.train, folder) == ["a.png", "sample_test_1.png", "validation.png"]


def test_class_subfolders_give_sorted_labels(tmp_path):
    write(tmp_path, "dog/1.png", "cat/2.png", "dog/deeper/3.png")
    source = opened(tmp_path)
    assert source.train.features["label"].names == ["cat", "dog"]
    assert names(source.train, tmp_path) == ["cat/2.png", "dog/1.png", "dog/deeper/3.png"]
    assert source.train["label"][:] == [0, 1, 1]
    assert source.classes_from == "the folders"
    assert source.notes == source.bad_files == ()


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["cat/1.png"], "the images lie in one folder, cat"),
        (["1.png", "2.png"], "the images lie in one folder"),
        (
            ["1.png", "cat/2.png", "dog/3.png"],
            "1 images, such as 1.png, lie beside the class folders cat, dog: move them into one",
        ),
    ],
)
def test_classes_need_two_folders_and_one_for_every_image(tmp_path, paths, reason):
    source = opened(write(tmp_path, *paths))
    assert classes(source) is None
    assert source.no_classes_because == reason
    assert len(source.train) == len(paths)


@pytest.mark.parametrize(
    ("path", "root"), [("all", "all"), ("a/b", "a/b"), ("train", "train"), ("x/train", "x/train")]
)
def test_classes_are_found_below_single_folders(tmp_path, path, root):
    source = opened(write(tmp_path, f"{path}/cat/1.png", f"{path}/dog/2.png"))
    assert classes(source) == ["cat", "dog"]
    assert source.classes_from == f"the folders in {root}"
    assert f"the images are all in the folder {root}" in source.notes


PAIRS = [
    *[("train", x) for x in ("test", "validation", "val", "valid", "dev", "eval", "Test", "VAL")],
    *(("Training", "Testing"), ("TRAIN", "TEST"), ("training", "validation")),
    *(("train2017", "val2017"), ("train_set", "test_set"), ("trainset", "testset")),
    *(("train-images", "val-images"), ("seg_train", "seg_test"), ("trainData", "testData")),
    *(
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("images/train", "images/val"),
        ("data/train", "data/dev"),
    ),
    *(("a/b/Train", "a/b/Valid"), ("Training Set", "Validation Set")),
]


@pytest.mark.parametrize(("train", "held_out"), PAIRS)
def test_split_folders(tmp_path, train, held_out):
    write(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{held_out}/dog/3.png")
    source = opened(tmp_path)
    assert names(source.train, tmp_path) == [f"{train}/cat/1.png", f"{train}/dog/2.png"]
    assert names(source.held_out, tmp_path) == [f"{held_out}/dog/3.png"]
    assert source.held_out_from == f"the folder {held_out}"
    assert classes(source) == ["cat", "dog"]
    assert source.held_out["label"][:] == [1]
    assert source.train.features == source.held_out.features


def test_validation_is_preferred_to_test(tmp_path):
    source = opened(write(tmp_path, "train/1.png", "test/2.png", "dev/3.png"))
    assert names(source.held_out, tmp_path) == ["dev/3.png"]
    assert source.notes == ("splits not used: test",)


def test_yolo_has_its_labels_beside(tmp_path):
    write(tmp_path, "images/train/1.png", "images/val/2.png")
    for name in ("train/1", "val/2"):
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 1 1")
    source = opened(tmp_path)
    assert names(source.train, tmp_path) == ["images/train/1.png"]
    assert names(source.held_out, tmp_path) == ["images/val/2.png"]
    assert classes(source) is None


def test_each_split_may_have_a_folder_of_its_own_name_inside(tmp_path):
    paths = ["training_set/training_set/cat/1.png", "training_set/training_set/dog/2.png"]
    write(tmp_path, *paths, "test_set/test_set/dog/3.png")
    source = opened(tmp_path)
    assert classes(source) == ["cat", "dog"]
    assert source.held_out["label"][:] == [1]


def test_splits_inside_each_class(tmp_path):
    paths = ["cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"]
    source = opened(write(tmp_path, *paths))
    assert names(source.train, tmp_path) == ["cat/train/1.png", "dog/train/3.png"]
    assert names(source.held_out, tmp_path) == ["cat/test/2.png", "dog/test/4.png"]
    assert classes(source) == ["cat", "dog"] and source.held_out["label"][:] == [0, 1]
    assert source.notes == ("the folders test, train inside others are splits",)


@pytest.mark.parametrize(
    ("paths", "found", "note"),
    [
        (["fruit/test/1.png", "train/2.png", "car/3.png"], "fruit train car", "train"),
        (["test/1.png", "tube/2.png"], "test tube", "test"),
        (["bullet_train/1.png", "freight train/2.png"], "bullet_train,freight train", None),
        (["train/1.png", "plane/2.png", "train/val/3.png"], "train plane", "train"),
    ],
)
def test_split_words_without_a_partner_are_classes(tmp_path, paths, found, note):
    source = opened(write(tmp_path, *paths))
    assert source.held_out is None
    found = found.split("," if "," in found else " ")
    assert source.train.features["label"].names == sorted(found)
    assert source.notes == ((f"taken as classes, not as splits: {note}",) if note else ())


@pytest.mark.parametrize(
    "others", [["3.png"], ["extra/3.png"], ["unlabeled2017/3.png", "annotations/4.png"]]
)
def test_anything_beside_split_folders_is_refused(tmp_path, others):
    write(tmp_path, "train2017/1.png", "val2017/2.png", *others)
    with pytest.raises(UserError, match=r"beside train2017, val2017: .*--train_split") as caught:
        opened(tmp_path)
    assert (others[0].split("/")[0] if "/" in others[0] else "loose images") in str(caught.value)
    source = opened(tmp_path, train_split="train2017", validation_split="val2017")
    assert (len(source.train), len(source.held_out)) == (1, 1)


@pytest.mark.parametrize("path", ["test", "images/val", "Testing"])
def test_held_out_folders_alone_are_refused(tmp_path, path):
    write(tmp_path, f"{path}/cat/1.png", f"{path}/dog/2.png")
    with pytest.raises(UserError, match=rf"no training split, only {path}: .*--train_split"):
        opened(tmp_path)
    assert classes(opened(tmp_path, train_split=path)) == ["cat", "dog"]


def test_several_training_folders_are_refused(tmp_path):
    write(tmp_path, "trainA/1.png", "trainB/2.png", "testA/3.png", "testB/4.png")
    with pytest.raises(UserError, match=r"several train splits, trainA, trainB: .*--train_split"):
        opened(tmp_path)
    source = opened(tmp_path, train_split="trainB", validation_split="testB")
    assert names(source.train, tmp_path) == ["trainB/2.png"]
    assert names(source.held_out, tmp_path) == ["testB/4.png"]


def test_split_flags_name_folders_exactly(tmp_path):
    write(tmp_path, "photos/new/cat/1.png", "photos/new/dog/2.png", "photos/old/cat/3.png")
    write(tmp_path, "photos/test/dog/4.png", "masks/new/5.png")
    source = opened(tmp_path, train_split="photos/new", validation_split="photos/old")
    assert names(source.train, tmp_path) == ["photos/new/cat/1.png", "photos/new/dog/2.png"]
    assert names(source.held_out, tmp_path) == ["photos/old/cat/3.png"]
    assert classes(source) == ["cat", "dog"] and source.held_out["label"][:] == [0]
    assert source.notes == ("splits not used: photos/test",)
    # The folders beside the one that is named are splits too.
    source = opened(tmp_path, train_split="photos/new/")
    assert names(source.held_out, tmp_path) == ["photos/test/dog/4.png"]
    source = opened(tmp_path, train_split="photos/new", validation_split="none")
    assert source.held_out is None and source.held_out_from is None


def test_the_whole_folder_can_be_the_training_split(tmp_path):
    source = opened(write(tmp_path, "train/1.png", "test/2.png", "cat/3.png"), train_split=".")
    assert classes(source) == ["cat", "test", "train"]
    assert source.held_out is None


def test_a_held_out_folder_is_no_part_of_the_training_split(tmp_path):
    write(tmp_path, "1/cat/a.png", "2/cat/b.png", "2/dog/c.png", "3/dog/d.png")
    source = opened(tmp_path, train_split=".", validation_split="2", label_column="none")
    assert names(source.train, tmp_path) == ["1/cat/a.png", "3/dog/d.png"]
    assert names(source.held_out, tmp_path) == ["2/cat/b.png", "2/dog/c.png"]
    with pytest.raises(UserError, match="all images of 1 are held out in"):
        opened(tmp_path, train_split="1", validation_split=".")


@pytest.mark.parametrize("choice", [{"train_split": "new"}, {"validation_split": "new"}])
def test_a_split_folder_that_is_not_there_is_refused(tmp_path, choice):
    write(tmp_path, "train/1.png", "test/2.png")
    with pytest.raises(UserError, match=rf"new of --{next(iter(choice))}.* test, train"):
        opened(tmp_path, **choice)


def test_held_out_image_of_an_unknown_class_is_refused(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/bird/3.png")
    with pytest.raises(UserError, match=r"test/bird/3\.png") as caught:
        opened(tmp_path)
    for flag in ("label_column", "validation_split"):
        assert f"--{flag} none" in str(caught.value)
        assert (opened(tmp_path, **{flag: "none"}).held_out is None) == (flag != "label_column")


def test_classes_of_digits_are_sorted_as_numbers(tmp_path):
    source = opened(write(tmp_path / "all", "1/a.png", "10/b.png", "2/c.png"))
    assert source.train.features["label"].names == ["1", "2", "10"]
    assert names(source.train, tmp_path / "all") == ["1/a.png", "10/b.png", "2/c.png"]
    assert source.train["label"][:] == [0, 2, 1]
    source = opened(write(tmp_path / "some", "1/a.png", "10/b.png", "2x/c.png"))
    assert source.train.features["label"].names == ["1", "10", "2x"]


def test_a_class_in_two_unicode_forms_is_one_class(tmp_path):
    source = opened(write(tmp_path, "caf\u00e9/1.png", "cafe\u0301/2.png", "bar/3.png"))
    assert sorted(classes(source)) == ["bar", "caf\u00e9", "caf\u00e9"]
    assert source.notes == ("classes written in several Unicode forms, taken as one: caf\u00e9",)


def test_label_column_none_leaves_the_folders(tmp_path):
    source = opened(write(tmp_path, "cat/1.png", "dog/2.png"), label_column="none")
    assert classes(source) is None
    assert source.no_classes_because == "--label_column is none"


def test_columns_of_an_image_folder_are_refused(tmp_path):
    write(tmp_path, "cat/1.png", "dog/2.png")
    with pytest.raises(UserError, match="leave out --image_column"):
        opened(tmp_path, image_column="image")
    with pytest.raises(UserError, match=r"--label_column breed: there is no metadata\.csv"):
        opened(tmp_path, label_column="breed")


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    write(tmp_path, "a.png", "b.png")
    before = opened(tmp_path).train._fingerprint
    assert opened(tmp_path).train._fingerprint == before
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert opened(tmp_path).train._fingerprint != before
