import pytest
import torch
from torch.nn import functional as F

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.images.generated import labelled_real_images
from hf_latent.evaluation.measures.classifier import (
    LabelledImages,
    choose_epochs,
    classifier_input,
    measure_accuracy,
    train_classifier,
)


def test_the_classifier_learns_real_images_and_detects_wrong_labels():
    splits = open_images(ImagesConfig(max_train_samples=1500, resize_mode="pad"))
    classifier = train_classifier(labelled_real_images(splits.train), 10, seed=0, epochs=3)
    test = labelled_real_images(splits.validation.evenly_spaced(400))
    assert measure_accuracy(classifier, test) > 0.7
    images, labels = test.read(torch.arange(400))
    wrong = LabelledImages.from_tensors(images, (labels + 1) % 10)
    assert measure_accuracy(classifier, wrong) < 0.2


def test_labelled_real_images_are_8_bit():
    dataset = open_images(ImagesConfig(max_train_samples=30)).train
    images, labels = labelled_real_images(dataset).read(torch.tensor([3, 0]))
    expected = torch.stack([dataset[3]["images"], dataset[0]["images"]])
    torch.testing.assert_close(images, expected, rtol=0, atol=1 / 255)
    assert torch.equal(labels, dataset.labels[[3, 0]])


@pytest.mark.parametrize("count", [4, 500, 501, 1203])
def test_accuracy_is_the_share_of_equal_labels(count):
    def classifier(images):
        return F.one_hot(images[:, 0, 0, 0].long(), 4).float()

    generator = torch.Generator().manual_seed(count)
    shown, labels = torch.randint(4, (2, count), generator=generator)
    images = LabelledImages.from_tensors(
        shown.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float(), labels
    )
    expected = (shown == labels).double().mean().item()
    assert measure_accuracy(classifier, images) == pytest.approx(expected)


def test_the_same_seed_gives_the_same_classifier():
    images, labels = torch.rand(64, 1, 16, 16) * 2 - 1, torch.arange(64) % 3
    given = LabelledImages.from_tensors(images, labels)
    one, two, other = (train_classifier(given, 3, seed, epochs=1) for seed in (5, 5, 6))
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_each_epoch_reads_every_image_once():
    images, labels = torch.rand(50, 1, 8, 8) * 2 - 1, torch.arange(50) % 3
    asked, told = [], []

    def read(rows):
        asked.append(rows)
        return images[rows], labels[rows]

    given = LabelledImages(read, 50)
    train_classifier(given, 3, seed=0, epochs=3, batch_size=20, on_images=told.append)
    first, *batches = asked
    assert told == [20, 20, 10] * 3
    assert len(first) == 1  # for the images' shape
    assert [len(rows) for rows in batches] == [20, 20, 10] * 3
    for epoch in range(3):
        rows = torch.cat(batches[3 * epoch : 3 * epoch + 3])
        assert rows.sort().values.tolist() == list(range(50))


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(10, 8), (13_000, 8), (25_000, 8), (40_000, 5), (60_000, 3), (1_000_000, 3)],
)
def test_many_images_need_fewer_epochs(images, epochs):
    assert choose_epochs(images) == epochs


@pytest.mark.parametrize(
    ("size", "fitting"),
    [
        ((32, 32), (32, 32)),
        ((48, 80), (48, 64)),
        ((30, 28), (24, 24)),
        ((5, 9), (8, 8)),
        ((64, 64), (64, 64)),
        ((256, 65), (64, 64)),
    ],
)
def test_sizes_that_do_not_fit_are_resampled(size, fitting):
    images = torch.rand(2, 3, *size) * 2 - 1
    found = classifier_input(images)
    if size == fitting:
        assert torch.equal(found, images)
    expected = F.interpolate(images, fitting, mode="bilinear", antialias=True)
    torch.testing.assert_close(found, expected)


def test_rgba_is_seen_on_white():
    red = torch.tensor([1.0, -1.0, -1.0, -0.5]).view(1, 4, 1, 1)  # a quarter opaque
    found = classifier_input(red.expand(2, 4, 16, 16))
    expected = torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("channels", "size"), [(4, (20, 20)), (4, (16, 16)), (1, (90, 36))])
def test_the_classifier_learns_images_of_any_size_and_rgba(channels, size):
    labels = torch.arange(120) % 2
    images = torch.rand(120, channels, *size, generator=torch.Generator().manual_seed(0)) - 0.5
    images[labels == 1, 0] += 0.5
    if channels == 4:
        images[:, 3] = 1
    given = LabelledImages.from_tensors(images, labels)
    classifier = train_classifier(given, 2, seed=0, epochs=8)
    assert measure_accuracy(classifier, given) > 0.95
    if channels == 4:
        images[:, 3] = -1  # all is white now
        assert measure_accuracy(classifier, given) == 0.5
