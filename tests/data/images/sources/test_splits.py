import pytest

from hf_latent.data.images.sources.splits import choose_splits, split_kind
from hf_latent.errors import UserError

KINDS = {
    "train": "train training Train TRAIN train_set trainset train2017 train-images trainData",
    "validation": "val valid validation dev eval VAL val2017 val_images dev_set evaluation",
    "test": "test testing Testing test2017 testset test_data TEST-IMAGES",
    None: "cat strain station contest latest trainer testimony devil evaluate split1 1 traintest",
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, x in KINDS.items() for n in x.split()])
def test_kinds_of_names(kind, name):
    found, others = split_kind(name)
    assert found == kind
    assert others == () or kind is None


def test_other_words_of_a_name():
    assert split_kind("DIV2K_train_HR") == ("train", ("div", "k", "hr"))
    assert split_kind("train station") == ("train", ("station",))
    assert split_kind("train_test") == (None, ())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train", ("train", None)),
        ("full", ("full", None)),
        ("train test", ("train", "test")),
        ("test validation train", ("train", "validation")),
        ("val valid train", ("train", "val")),
        ("Train Test Dev", ("Train", "Dev")),
        ("train train_small test", ("train", "test")),
        ("train extra", ("train", None)),
        ("training validation test", ("training", "validation")),
    ],
)
def test_choices(names, expected):
    assert choose_splits(names.split(), "data", None, None) == expected


@pytest.mark.parametrize(
    "names", ["test", "val test", "left right", "full test", "unsupervised dev"]
)
def test_without_a_training_split_the_names_and_the_flags_are_told(names):
    with pytest.raises(UserError, match=r"data has no training split, only .*--train_split.*--val"):
        choose_splits(names.split(), "data", None, None)
    first, *rest = names.split()
    rest = [name for name in rest if name in ("test", "dev")]
    assert choose_splits(names.split(), "data", first, None) == (first, rest[0] if rest else None)


@pytest.mark.parametrize(
    ("names", "flag"),
    [
        ("train_a train_b test", "--train_split"),
        ("train validation_a validation_b", "--validation_split"),
        ("train test2016 test2017", "--validation_split"),
    ],
)
def test_several_splits_of_a_kind_are_refused(names, flag):
    with pytest.raises(UserError, match=rf"several .* name one with {flag}"):
        choose_splits(names.split(), "data", None, None)


def test_flags_win():
    names = ["train", "validation", "test", "extra"]
    assert choose_splits(names, "data", "extra", None) == ("extra", "validation")
    assert choose_splits(names, "data", None, "test") == ("train", "test")
    assert choose_splits(names, "data", "test", "extra") == ("test", "extra")
    assert choose_splits(names, "data", None, "none") == ("train", None)
    assert choose_splits(["left", "right"], "data", None, "right") == ("left", "right")


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ("other", None, "no images in the split other of --train_split, but in: test, train"),
        ("none", None, "no images in the split none of --train_split"),
        (None, "Test", "no images in the split Test of --validation_split"),
        ("train", "train", "both name train"),
    ],
)
def test_flags_that_do_not_fit_are_refused(train, held_out, message):
    with pytest.raises(UserError, match=message):
        choose_splits(["train", "test"], "data", train, held_out)
