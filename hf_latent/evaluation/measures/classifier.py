"""A small classifier, to measure whether generated images show their class."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from hf_latent.evaluation.pictures import composite

WIDTHS = (16, 32, 64)
LARGEST_SIZE = 64


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels, read when they are needed.

    Attributes:
        read: from `(n,)` int64 row numbers to images `(n, C, H, W)` float in [-1, 1] and labels
            `(n,)` int64.
        length: the number of rows.
        is_measured: whether four channels are measurements, not RGBA.
    """

    read: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    length: int
    is_measured: bool = False

    @classmethod
    def from_tensors(cls, images: torch.Tensor, class_labels: torch.Tensor) -> "LabelledImages":
        """Wrap images and labels that are in memory."""
        return cls(lambda rows: (images[rows], class_labels[rows]), len(images))


def classifier_input(images: torch.Tensor, is_measured: bool = False) -> torch.Tensor:
    """Convert images `(B, C, H, W)` float in [-1, 1] to what the classifier accepts.

    RGBA is composited on white; other sizes than multiples of 8, up to 64, are resampled to these.
    """
    if images.shape[1] == 4 and not is_measured:
        images = composite(images / 2 + 0.5, 1.0) * 2 - 1
    size = tuple(min(LARGEST_SIZE, max(8, side // 8 * 8)) for side in images.shape[2:])
    if size != images.shape[2:]:
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return images


def create_classifier(image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Create an untrained classifier from images `(B, C, H, W)` to logits `(B, num_classes)`.

    Args:
        image_shape: `(C, H, W)`; H and W multiples of 8.
    """
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *WIDTHS)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    features = WIDTHS[-1] * (height // 8) * (width // 8)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(features, num_classes)
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def choose_epochs(images: int) -> int:
    """Return the number of epochs: 8, decreasing to 3 for large data sets."""
    return min(8, max(3, 200_000 // images))


def train_classifier(
    images: LabelledImages,
    num_classes: int,
    seed: int,
    epochs: int = 8,
    batch_size: int = 64,
    on_images: Callable[[int], object] = lambda count: None,
) -> nn.Module:
    """Train a classifier, with half of the images mirrored, and return it in eval mode.

    Args:
        seed: of the weights, the order and the mirroring.
        epochs: passes over the images.
        batch_size: images per step.
        on_images: called with the number of images after each step.
    """
    torch.manual_seed(seed)
    first = classifier_input(images.read(torch.tensor([0]))[0], images.is_measured)
    classifier = create_classifier(tuple(first.shape[1:]), num_classes)
    optimizer = torch.optim.AdamW(classifier.parameters())
    steps = epochs * -(-images.length // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=steps, pct_start=0.25
    )
    for _ in range(epochs):
        for rows in torch.randperm(images.length).split(batch_size):
            batch, class_labels = images.read(rows)
            batch = classifier_input(batch, images.is_measured)
            batch = batch.contiguous(memory_format=torch.channels_last)
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            logits = classifier(torch.where(mirrored, batch.flip(3), batch))
            loss = functional.cross_entropy(logits, class_labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_images(len(rows))
    return classifier.eval()


@torch.no_grad()
def measure_accuracy(classifier: nn.Module, images: LabelledImages) -> float:
    """Return the share of images, in [0, 1], for which the classifier predicts their label.

    On real images this is the classifier's accuracy; on generated ones it is label agreement.
    """
    right = 0
    for rows in torch.arange(images.length).split(500):
        batch, class_labels = images.read(rows)
        batch = classifier_input(batch, images.is_measured)
        right += int((classifier(batch).argmax(1) == class_labels).sum())
    return right / images.length
