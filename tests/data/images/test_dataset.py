import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.held_out import content_hash
from hf_latent.data.images.open import open_images
from hf_latent.data.images.pixels import to_tensors, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)
TRAIN = 20


def picture(seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(size, size + 2, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes; 20 training images, four of them copies, and 4 held-out images."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, seeds in (("train", range(TRAIN)), ("test", range(90, 94))):
        for seed in seeds:
            path = folder / split / "ab"[seed % 2] / f"{seed:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = seed - 10 if split == "train" and seed in (13, 15, 16) else seed
            content = 3 if seed == 19 else content
            Image.fromarray(picture(content)).save(path)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return ImagesConfig(data=str(folder), resolution=8)


@pytest.fixture
def dataset(config) -> ImageDataset:
    return open_images(config).train


def tensors(dataset: ImageDataset) -> torch.Tensor:
    return torch.stack([dataset[row]["images"] for row in range(len(dataset))])


def test_to_uint8_inverts_to_tensor_at_every_level():
    images = to_tensors([LEVELS.view(16, 16, 1).numpy()])
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), LEVELS.view(1, 1, 16, 16))
    # So does the way that is taken from 8 bit to an autoencoder.
    assert torch.equal(to_uint8(LEVELS.view(1, 1, 16, 16) / 127.5 - 1), LEVELS.view(1, 1, 16, 16))


def test_to_uint8_clamps_and_rounds_to_the_nearest():
    images = torch.tensor([-3.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.7]).view(1, 1, 1, 5)
    found = to_uint8(images)
    assert found.dtype == torch.uint8
    assert found.flatten().tolist() == [0, 0, 1, 255, 255]


def test_read_uint8_gives_the_pixels_in_the_order_asked_for(config):
    dataset = open_images(replace(config, resolution=12, resize_mode="pad")).train
    rows = torch.tensor([4, 0, 4])
    images = dataset.read_uint8(rows)
    assert (images.dtype, images.shape) == (torch.uint8, (3, 3, 12, 12))
    assert torch.equal(images, to_uint8(tensors(dataset)[rows]))


def test_read_uint8_of_fashion_mnist_equals_the_file():
    splits = open_images(ImagesConfig(resize_mode="pad", max_train_samples=50))
    images = splits.train.read_uint8(torch.arange(50))
    assert images.unique().numel() > 200
    hashes = [content_hash(image[0, 2:30, 2:30, None].numpy()).encode() for image in images]
    assert hashes == splits.train.hashes.tolist()


@pytest.mark.parametrize("keep_in_memory", [False, True])
@pytest.mark.parametrize("places", [[7], [19, 0, 3, 11], list(range(TRAIN))[::-1]])
def test_a_subset_has_the_images_labels_and_hashes_of_its_places(config, places, keep_in_memory):
    dataset = open_images(config, keep_in_memory=keep_in_memory).train
    everything = tensors(dataset)  # fills the memory
    subset = dataset.subset(np.array(places))
    assert len(subset) == len(places)
    for _ in range(2):
        assert torch.equal(tensors(subset), everything[places])
    assert torch.equal(subset.labels, dataset.labels[places])
    assert [int(item["class_labels"]) for item in subset] == subset.labels.tolist()
    assert subset.hashes.tolist() == dataset.hashes[places].tolist()
    # The whole is as it was.
    assert len(dataset) == TRAIN
    assert torch.equal(tensors(dataset), everything)


def test_a_subset_of_a_subset(dataset):
    subset = dataset.subset(np.arange(5, 15)).subset(np.array([2, 9]))
    assert torch.equal(tensors(subset), tensors(dataset)[[7, 14]])


def test_labels_are_those_of_the_items(dataset, tmp_path):
    assert dataset.labels.dtype == torch.int64
    assert dataset.labels.tolist() == [int(item["class_labels"]) for item in dataset]
    for seed in range(4):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    assert open_images(ImagesConfig(data=str(tmp_path))).train.labels is None


def test_exact_duplicates_count_images_with_the_pixels_of_an_earlier_one(dataset):
    hashes = {dataset.hashes[row]: row for row in range(TRAIN)}
    assert dataset.exact_duplicates == TRAIN - len(hashes) == 4
    places = np.array(sorted(hashes.values()))
    assert dataset.subset(places).exact_duplicates == 0
    assert dataset.subset(np.array([0, 0, 0])).exact_duplicates == 2


def test_the_fingerprint_is_of_the_set_and_not_of_its_order(dataset):
    order = np.random.default_rng(0).permutation(TRAIN)
    assert dataset.subset(order).fingerprint == dataset.fingerprint
    others = {dataset.subset(np.delete(order, place)).fingerprint for place in range(3)}
    assert len(others | {dataset.fingerprint}) == 4
    by_hand = hashlib.sha256(b"\n".join(sorted(dataset.hashes.tolist()))).hexdigest()[:16]
    assert dataset.fingerprint == by_hand


def test_the_held_out_images_have_the_fingerprint_of_the_report(config):
    splits = open_images(config)
    assert splits.validation.fingerprint == splits.validation_fingerprint


def test_equal_images_in_another_folder_have_equal_identity(config, dataset, tmp_path):
    again = open_images(config).train
    assert again.identity == dataset.identity
    assert len(dataset.identity) == 64
    # Opened otherwise, and with what a view takes away.
    flipped = open_images(replace(config, crop="random", horizontal_flip=True, seed=7)).train
    assert flipped.view(mirrored=False).identity == dataset.view(mirrored=False).identity
    assert torch.equal(tensors(flipped.view(False)), tensors(dataset))


@pytest.mark.parametrize(
    "changes",
    [
        {"resize_mode": "pad"},
        {"resolution": 16},
        {"resolution": "8,16"},
        {"channels": 1},
        {"channels": 4},
    ],
)
def test_identity_depends_on_the_preprocessing_and_the_fingerprint_does_not(
    config, dataset, changes
):
    other = open_images(replace(config, **changes)).train
    assert other.identity != dataset.identity
    assert other.preprocessing != dataset.preprocessing
    assert other.fingerprint == dataset.fingerprint


def test_identity_depends_on_mirroring(dataset):
    plain, mirrored = dataset.view(mirrored=False), dataset.view(mirrored=True)
    assert torch.equal(tensors(mirrored), tensors(plain).flip(3))
    assert mirrored.identity != plain.identity
    assert mirrored.fingerprint == plain.fingerprint


def test_identity_depends_on_the_order_and_on_every_image(dataset):
    order = np.arange(TRAIN)
    swapped, without = order.copy(), np.delete(order, 5)
    swapped[[0, 1]] = 1, 0
    found = {dataset.subset(places).identity for places in (order, swapped, without)}
    assert len(found) == 3
    assert dataset.identity in found


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        ({"resize_mode": "pad", "resolution": 20}, (4, 3, 12, 14)),
        ({"resize_mode": "pad", "resolution": "12,30"}, (0, 8, 12, 14)),
        ({"resize_mode": "pad", "resolution": "12,14"}, None),
        ({"resize_mode": "crop", "resolution": 20}, None),
    ],
)
def test_unpadded_box(config, changes, box):
    dataset = open_images(replace(config, **changes)).train
    assert dataset.unpadded_box() == box
    if box is not None:
        images = tensors(dataset)
        inside = dataset.unpadded_box().cut(images)
        assert torch.equal(inside, tensors(open_images(replace(config, resolution="12,14")).train))
        assert (images == -1).sum() == images.numel() - inside.numel() + (inside == -1).sum()


def test_workers_get_no_hashes(dataset):
    assert dataset.hashes is not None
    assert pickle.loads(pickle.dumps(dataset)).hashes is None
