"""A small classifier, trained on real images: do generated ones show what was asked for?"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)


def create_classifier(image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Create an untrained convolutional classifier for small images.

    Args:
        image_shape: `(C, H, W)`; H and W multiples of 8.
        num_classes: how many logits.

    Returns:
        A module from `(B, C, H, W)` in [-1, 1] to `(B, num_classes)` logits.
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


def train_classifier(
    images: torch.Tensor,
    class_labels: torch.Tensor,
    num_classes: int,
    seed: int,
    epochs: int = 8,
    batch_size: int = 64,
) -> nn.Module:
    """Train a classifier on real images, half of them mirrored.

    Args:
        images: `(N, C, H, W)` float in [-1, 1], all in memory; H and W multiples of 8.
        class_labels: `(N,)` int64.
        num_classes: how many classes there are.
        seed: of the weights, the order and the mirroring.
        epochs: passes over the images.
        batch_size: images a step.

    Returns:
        The classifier, in eval mode.
    """
    torch.manual_seed(seed)
    classifier = create_classifier(tuple(images.shape[1:]), num_classes)
    images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * -(-len(images) // batch_size), pct_start=0.25
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch_size):
            batch = images[rows]
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            logits = classifier(torch.where(mirrored, batch.flip(3), batch))
            loss = functional.cross_entropy(logits, class_labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.no_grad()
def measure_accuracy(
    classifier: nn.Module, images: torch.Tensor, class_labels: torch.Tensor
) -> float:
    """Return how often a classifier gives an image the label that goes with it.

    On real images this is its accuracy; on generated ones, with the labels that were asked for,
    label agreement.

    Args:
        classifier: in eval mode.
        images: `(N, C, H, W)` float in [-1, 1].
        class_labels: `(N,)` int64.

    Returns:
        A share in [0, 1].
    """
    predicted = torch.cat([classifier(batch).argmax(1) for batch in images.split(500)])
    return (predicted == class_labels).float().mean().item()
