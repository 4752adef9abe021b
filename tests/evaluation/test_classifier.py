import torch

from hf_latent.data.images import open_images
from hf_latent.data.images_config import ImagesConfig
from hf_latent.evaluation.classifier import measure_accuracy, train_classifier
from hf_latent.experiments.quickstart import load_tensors


def test_it_learns_real_images_and_tells_when_labels_are_wrong():
    splits = open_images(ImagesConfig(max_train_samples=1500, resize_mode="pad"))
    images, labels = load_tensors(splits.train)
    classifier = train_classifier(images, labels, 10, seed=0, epochs=3)
    test_images, test_labels = load_tensors(splits.validation.evenly_spaced(400))
    assert measure_accuracy(classifier, test_images, test_labels) > 0.7
    wrong = (test_labels + 1) % 10
    assert measure_accuracy(classifier, test_images, wrong) < 0.2


def test_accuracy_is_the_share_of_equal_labels():
    def classifier(images):
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 4).float()

    images = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1, 1)
    assert measure_accuracy(classifier, images, torch.tensor([0, 1, 0, 0])) == 0.5


def test_the_same_seed_gives_the_same_classifier():
    images, labels = torch.rand(64, 1, 16, 16) * 2 - 1, torch.arange(64) % 3
    one, two = (train_classifier(images, labels, 3, seed=5, epochs=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
