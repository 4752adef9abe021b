"""How well the feature network tells classes apart, by the size that it sees 32x32 images at.

    python train_scripts/release/feature_size_figures.py DATA ...

Each DATA has images with classes. A linear classifier is trained on the features of training images
and tested on held-out images. Writes docs/reports/feature_size.json.
"""

import sys
from pathlib import Path
from typing import TypeAlias

import torch
from torch.nn import functional

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.extractors import EfficientNetVectors, load_feature_extractor
from hf_latent.evaluation.machine import shown_name
from hf_latent.output import write_json

ROOT = Path(__file__).parents[2]
SIZES = (32, 64, 96, 128)
TRAIN_IMAGES, HELD_OUT_IMAGES, BATCH_SIZE, WEIGHT_DECAY = 2000, 1000, 100, 1e-2
Features: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def read_features(images: ImageDataset, count: int, extractor: EfficientNetVectors) -> Features:
    """Return features `(n, d)` and labels `(n,)` of evenly spaced images."""
    chosen = images.evenly_spaced(count)
    parts = chosen.read_uint8(torch.arange(len(chosen))).split(BATCH_SIZE)
    return torch.cat([extractor(part) for part in parts]), torch.as_tensor(chosen.labels)


def probe(train: Features, test: Features) -> float:
    """Train a linear classifier on standardised features; return its accuracy on the others."""
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    (inputs, labels), (others, expected) = (((x - mean) / std, y) for x, y in (train, test))
    layer = torch.nn.utils.skip_init(torch.nn.Linear, inputs.shape[1], int(labels.max()) + 1)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        decay = WEIGHT_DECAY / 2 * layer.weight.square().sum()
        loss = functional.cross_entropy(layer(inputs), labels) + decay
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((layer(others).argmax(1) == expected).float().mean())


if __name__ == "__main__":
    extractor = load_feature_extractor("efficientnet-lite0")
    assert isinstance(extractor, EfficientNetVectors)
    accuracies: dict[str, dict[str, float]] = {}
    for data in sys.argv[1:]:
        splits = open_images(ImagesConfig(data=data, resolution="32", resize_mode="pad"))
        for size in SIZES:
            extractor.MINIMUM_SIZE = size
            train = read_features(splits.train, TRAIN_IMAGES, extractor)
            test = read_features(splits.validation, HELD_OUT_IMAGES, extractor)
            accuracies.setdefault(shown_name(data), {})[str(size)] = probe(train, test)
    report = {"train_images": TRAIN_IMAGES, "held_out_images": HELD_OUT_IMAGES}
    write_json(ROOT / "docs" / "reports" / "feature_size.json", report | {"accuracies": accuracies})
