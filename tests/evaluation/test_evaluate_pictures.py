import numpy as np
import pytest
import torch
from PIL import Image

from hf_latent.data.images.captions import CaptionTexts
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.shards import write_shards
from hf_latent.evaluation.evaluate_pictures import (
    PAIRS,
    save_closest,
    save_duplicates,
    save_prompts,
    save_samples,
)
from hf_latent.evaluation.images.captioned import HeldOutCaptions
from hf_latent.evaluation.measures.memorisation import Closeness, Duplicates
from hf_latent.evaluation.pictures import GAP, HEADING_HEIGHT, LABEL_WIDTH

CELL = 64  # images of 16 or 32 pixels are enlarged to this


def samples(folder, images, labels=None):
    tensors = {"images": images} | ({} if labels is None else {"class_labels": labels})
    return write_shards(
        folder, len(images), lambda rows: {k: v[list(rows)] for k, v in tensors.items()}, {}
    )


def flat(levels: list[int]) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)


def cells(path, left: int = 0, group: int | None = None) -> np.ndarray:
    """The grid's cells, `(rows, columns, 64, 64)`, of one grey channel, without the gaps."""
    pixels = np.asarray(Image.open(path))[:, left:, 0]
    if group:
        columns = np.arange(pixels.shape[1]) % (group * CELL + GAP)
        assert (pixels[:, columns >= group * CELL] == 255).all()
        pixels = pixels[:, columns < group * CELL]
    height, width = pixels.shape
    assert height % CELL == width % CELL == 0
    grid = pixels.reshape(height // CELL, CELL, width // CELL, CELL)
    return grid.transpose(0, 2, 1, 3)


def test_each_class_has_a_row_of_its_first_samples(pipeline, tmp_path):
    labels = torch.tensor([0, 2, 2] * 9 + [1] * 7)  # class 1 has too few
    written = samples(tmp_path, flat(list(range(len(labels)))), labels)
    save_samples(tmp_path / "samples.png", written, pipeline)
    found = cells(tmp_path / "samples.png", LABEL_WIDTH)[:, :, 32, 32]
    assert found.tolist() == [
        [0, 3, 6, 9, 12, 15, 18, 21],
        [1, 2, 4, 5, 7, 8, 10, 11],
    ]


def test_samples_without_classes_are_the_first_64(unconditional, tmp_path):
    written = samples(tmp_path, flat(list(range(70))))
    save_samples(tmp_path / "samples.png", written, unconditional)
    found = cells(tmp_path / "samples.png")[:, :, 32, 32]
    assert found.tolist() == np.arange(64).reshape(8, 8).tolist()


@pytest.fixture(scope="module")
def train():
    return open_images(ImagesConfig(resize_mode="pad", max_train_samples=80)).train


def test_each_prompt_has_a_row_that_ends_with_its_real_image(train, tmp_path):
    texts = CaptionTexts(("", *(f"caption {i}" for i in range(20))), 1)
    rows = torch.arange(40, 60)
    captions = HeldOutCaptions(texts, rows, torch.arange(1, 21)[:, None])
    written = samples(tmp_path / "50", flat(list(range(50))).repeat(1, 1, 2, 2))
    save_prompts(tmp_path / "samples.png", written, captions, train)
    height = HEADING_HEIGHT + 16 * CELL
    whole = Image.open(tmp_path / "samples.png")
    assert whole.size == (LABEL_WIDTH + 3 * CELL, height)
    whole.crop((0, HEADING_HEIGHT, *whole.size)).save(tmp_path / "cells.png")
    found = cells(tmp_path / "cells.png", LABEL_WIDTH)
    places = torch.arange(16) * 20 // 16
    drawn = torch.stack([places, places + 20], dim=1)
    assert found[:, :2, 32, 32].tolist() == drawn.tolist()
    real = train.read_uint8(rows[places])
    for i in range(16):
        assert np.array_equal(found[i, 2], picture(real[i]))
    assert (np.asarray(whole)[:, :LABEL_WIDTH] < 255).any(axis=(1, 2)).sum() > 16 * 6
    few = samples(tmp_path / "7", flat(list(range(7))).repeat(1, 1, 2, 2))
    save_prompts(tmp_path / "few.png", few, captions, train)
    assert Image.open(tmp_path / "few.png").size == (LABEL_WIDTH + 2 * CELL, 20 + 7 * CELL)


def picture(image: torch.Tensor) -> np.ndarray:
    return np.kron(image[0].numpy(), np.ones((2, 2), np.uint8))


def test_the_closest_samples_stand_beside_their_training_image(train, tmp_path):
    count = PAIRS + 6
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    places = torch.randint(80, (count,), generator=generator)
    mirrored = torch.arange(count) % 2 == 0
    ratios = torch.rand(count, generator=generator)
    written = samples(tmp_path / "samples", images)
    path = tmp_path / "closest.png"
    save_closest(path, written, train, Closeness(ratios, places, mirrored))
    found = cells(path, group=2).reshape(-1, CELL, CELL)
    assert len(found) == 2 * PAIRS
    for pair, row in enumerate(ratios.argsort()[:PAIRS].tolist()):
        original = train.read_uint8(places[row : row + 1])
        original = original.flip(3) if mirrored[row] else original
        np.testing.assert_array_equal(found[2 * pair], picture(images[row]))
        np.testing.assert_array_equal(found[2 * pair + 1], picture(original[0]))


def test_each_pair_of_duplicates_is_shown_once(train, tmp_path):
    places = torch.arange(80) ^ 1  # 0 and 1, 2 and 3, ... are each other's nearest
    ratios = 1 - torch.arange(80) / 100  # the last come first
    path = tmp_path / "duplicates.png"
    save_duplicates(path, train, Duplicates(ratios, places, torch.ones(80)))
    found = cells(path, group=2).reshape(-1, CELL, CELL)
    assert len(found) == 2 * PAIRS
    for pair in range(PAIRS):
        rows = torch.tensor([78 - 2 * pair, 79 - 2 * pair])
        for place, image in enumerate(train.read_uint8(rows)):
            np.testing.assert_array_equal(found[2 * pair + place], picture(image))
