"""The macros of sentences that several cards share."""

import pytest

from hf_latent.hub.card.facts import hub_id
from hf_latent.hub.card.render import ENVIRONMENT

SENTENCES = ENVIRONMENT.get_template("sentences.md").module
CPU = {"device": "cpu", "cpu_cores": 2, "torch_threads": 1}


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (CPU, "1 thread of a machine with 2 CPU cores"),
        (CPU | {"processes": 2}, "2 processes, each with 1 thread of a machine with 2 CPU cores"),
        ({"cpu_cores": 1}, "a machine with 1 CPU core"),
        (CPU | {"device": "NVIDIA A100"}, "NVIDIA A100"),
        (CPU | {"device": "NVIDIA A100", "processes": 8}, "8 processes, each on NVIDIA A100"),
        (CPU | {"device": "a|b"}, "a\\|b"),
        (CPU | {"processes": "many"}, "1 thread of a machine with 2 CPU cores"),
        ({}, ""),
    ],
)
def test_machines(report, text):
    assert SENTENCES.machine(report) == text


@pytest.mark.parametrize("absent", ["steps", "seconds", "train_batch_size"])
def test_a_training_without_its_length_is_left_out(absent):
    report = {"steps": 1, "seconds": 200, "train_batch_size": 2}
    assert SENTENCES.training(report) == "1 step of 2 images (2 images seen) in 3 minutes"
    assert SENTENCES.training(report | {absent: None}) == ""
    assert SENTENCES.training(report | {absent: "1"}) == ""


def test_a_training_resumed_with_other_batches_shows_the_images_seen():
    report = {"steps": 10, "seconds": 60, "train_batch_size": 4, "processes": 2}
    assert SENTENCES.training(report | {"images_seen": 80, "images_per_second": 1.4}) == (
        "10 steps of 8 images (80 images seen) in 60 seconds, 1 images per second"
    )
    assert SENTENCES.training(report | {"images_seen": 1060}) == (
        "10 steps (1,060 images seen) in 60 seconds"
    )
    assert SENTENCES.training(report | {"images_seen": "many"}) == (
        "10 steps of 8 images (80 images seen) in 60 seconds"
    )


def test_known_facts_of_the_data_are_shown():
    assert SENTENCES.origin({}) == SENTENCES.origin({"train_images": "1"}) == ""
    assert SENTENCES.origin({"train_images": 1}) == "1 training image"
    known = {"train_images": 2, "data": "a|b", "image_shape": [3, 8, 16], "horizontal_flip": True}
    text = "2 training images of a\\|b, of 8x16 pixels, 3 channels, half of them mirrored at random"
    assert SENTENCES.origin(known) == text
    assert "cropped to 8x16 pixels" in SENTENCES.origin(known | {"resize_mode": "crop"})
    held_out = known | {"held_out_split_images": 1, "validation_fingerprint": "`x`"}
    # The fingerprint is in a code span, which a backtick would close.
    assert SENTENCES.origin(held_out) == f"{text}. 1 other image was held out and never trained on"


@pytest.mark.parametrize(
    ("data", "known"),
    [
        ("fashion_mnist", "zalando-datasets/fashion_mnist"),
        ("owner/set", "owner/set"),
        ("images", None),
        ("a/b/c", None),
        ("../x", None),
        (None, None),
    ],
)
def test_only_a_data_set_of_the_hub_has_an_id(data, known):
    assert hub_id(data) == known


def test_versions():
    report = {"torch_version": "2|3", "python_version": "3"}
    assert SENTENCES.versions(report) == "Python 3, torch 2\\|3"
    assert SENTENCES.versions({}) == ""
