from fractions import Fraction
from math import comb

import pytest
import torch

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.extractors import LatentVectors
from hf_latent.evaluation.measures.memorisation import (
    COPY_RATIO,
    LOCAL_NEIGHBOURS,
    Closeness,
    Duplicates,
    excess_p_value,
    measure_closeness,
    memorisation_figures,
)
from hf_latent.evaluation.measures.neighbours import nearest_neighbours
from hf_latent.models.load import load_autoencoder

TRAIN, SAMPLES, HELD_OUT = 1000, 250, 250


def fisher(copies, images, held_out_copies, held_out_images):
    """Compute the hypergeometric tail in whole numbers."""
    flagged = copies + held_out_copies
    ways = sum(
        comb(images, k) * comb(held_out_images, flagged - k)
        for k in range(copies, min(images, flagged) + 1)
    )
    return float(Fraction(ways, comb(images + held_out_images, flagged)))


@pytest.mark.parametrize(
    "table",
    [
        (0, 100, 0, 100),
        (0, 100, 7, 50),
        (5, 100, 0, 100),
        (5, 100, 5, 100),
        (40, 100, 3, 30),
        (100, 100, 0, 10),
        (3, 3, 200, 200),
        (12, 10_000, 9, 2000),
        (400, 10_000, 20, 2000),
        (9_990, 10_000, 1_900, 2000),
    ],
)
def test_the_p_value_equals_fishers_exact_test(table):
    assert excess_p_value(*table) == pytest.approx(fisher(*table), rel=1e-6)


def test_the_p_value_of_every_small_table():
    for copies in range(5):
        for held_out_copies in range(7):
            table = (copies, 4, held_out_copies, 6)
            assert excess_p_value(*table) == pytest.approx(fisher(*table), rel=1e-9)
    # A textbook example, the lady tasting tea: 17/70.
    assert excess_p_value(3, 4, 1, 4) == pytest.approx(17 / 70)


@pytest.fixture(scope="module")
def extract():
    extractor = LatentVectors(load_autoencoder("fashion-mnist-f4").eval())
    with torch.no_grad():
        yield lambda images: torch.cat([extractor(block) for block in images.split(100)])


@pytest.fixture(scope="module")
def splits():
    return open_images(ImagesConfig(data="fashion_mnist", resize_mode="pad"))


@pytest.fixture(scope="module")
def train(splits):
    rows = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    return splits.train.read_uint8(rows[:TRAIN])


@pytest.fixture(scope="module")
def held_out(splits):
    """Held-out images: some to compare with, and others to use as samples."""
    rows = torch.randperm(len(splits.validation), generator=torch.Generator().manual_seed(0))
    images = splits.validation.read_uint8(rows[: HELD_OUT + SAMPLES])
    return images[:HELD_OUT], images[HELD_OUT:]


@pytest.fixture(scope="module")
def check(extract, train, held_out):
    """Compare samples with the training images, to which `more` are added."""
    vectors = extract(train)
    held_out_vectors = [extract(x).split(110) for x in (held_out[0], held_out[0].flip(3))]

    def run(samples, more=train[:0]):
        blocks = (torch.cat([vectors, extract(more)]) if len(more) else vectors).split(700)
        duplicates = Duplicates.from_neighbours(
            *nearest_neighbours(blocks, blocks, LOCAL_NEIGHBOURS, exclude_self=True)
        )
        shown = [extract(x).split(300) for x in (samples, samples.flip(3))]
        closeness, own = (
            measure_closeness(*x, blocks, duplicates) for x in (shown, held_out_vectors)
        )
        return closeness, memorisation_figures(closeness, own, "latents"), duplicates

    return run


def some(train, count=SAMPLES, seed=1):
    return torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]


def noisy(images, std=5):
    noise = std * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).round().clamp(0, 255).byte()


CHANGES = {
    "copies": lambda images: images,
    "mirrored": lambda images: images.flip(3),
    "noisy": noisy,
    "noisy and mirrored": lambda images: noisy(images).flip(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_samples_that_copy_training_images_are_found(check, train, change):
    rows = some(train)
    closeness, figures, _ = check(CHANGES[change](train[rows]))
    assert figures["memorisation_latents_found"] is True
    assert figures["memorisation_latents_copies"] > 0.95 * SAMPLES
    assert figures["memorisation_latents_held_out_copies"] < 0.02 * HELD_OUT
    assert figures["memorisation_latents_p_value"] < 1e-100
    assert (closeness.places == rows).float().mean() > 0.95
    assert (closeness.mirrored == ("mirrored" in change)).float().mean() > 0.95


def test_held_out_images_are_not_called_copies(check, held_out):
    closeness, figures, _ = check(held_out[1])
    assert figures["memorisation_latents_found"] is False
    assert figures["memorisation_latents_p_value"] > 0.01
    assert 0.7 < figures["memorisation_latents_ratio_median"] < 1.5
    assert figures["memorisation_latents_ratio_median"] == closeness.ratios.median().item()
    assert figures["memorisation_latents_ratio_median"] == pytest.approx(
        figures["memorisation_latents_held_out_ratio_median"], rel=0.1
    )


def test_a_few_copies_among_new_images_are_found(check, train, held_out):
    rows = some(train, SAMPLES // 20)
    samples = torch.cat([noisy(train[rows]), held_out[1][len(rows) :]])
    closeness, figures, _ = check(samples)
    assert figures["memorisation_latents_found"] is True
    assert figures["memorisation_latents_p_value"] < 1e-3
    closest = closeness.ratios.argsort()[: len(rows)]
    assert (closest < len(rows)).float().mean() > 0.9


@pytest.mark.parametrize("duplicates", [1, 4])
def test_duplicates_of_a_training_image_do_not_hide_its_copy(check, train, duplicates):
    rows = some(train, 100)
    repeated = [noisy(train[rows], std=1 + i) for i in range(duplicates)]
    _, figures, found = check(noisy(train[rows]), torch.cat(repeated))
    assert figures["memorisation_latents_copies"] > 95
    assert figures["memorisation_latents_found"] is True
    assert found.count >= 100 * (duplicates + 1)  # each duplicate and its original


def test_closeness_is_the_smaller_ratio_to_the_neighbours_own_scale():
    train = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [20.0]])
    duplicates = Duplicates.from_neighbours(
        *nearest_neighbours([train], [train], LOCAL_NEIGHBOURS, exclude_self=True)
    )
    assert duplicates.local_scale.tolist() == [5, 4, 3, 3, 4, 5, 19]
    told = []
    found = measure_closeness(
        [torch.tensor([[2.3], [9.0], [15.0]])],
        [torch.tensor([[9.0], [0.6], [-4.0]])],
        [train],
        duplicates,
        told.append,
    )
    assert told == [3, 3]
    torch.testing.assert_close(found.ratios, torch.tensor([0.3 / 3, 0.4 / 4, 5 / 19]))
    assert found.places.tolist() == [2, 1, 6]
    assert found.mirrored.tolist() == [False, True, False]
    assert found.copies == 3
    # Among the training images, the last one's nearest is at distance 15 and has scale 5.
    assert duplicates.ratios[[0, 5, 6]].tolist() == [1 / 4, 1 / 4, 15 / 5]
    assert duplicates.count == 6


def test_the_figures_count_ratios_below_the_limit():
    def closeness(*ratios):
        count = len(ratios)
        places = torch.zeros(count, dtype=torch.int64)
        return Closeness(torch.tensor(ratios), places, torch.zeros(count, dtype=torch.bool))

    samples = closeness(0.1, COPY_RATIO, 0.4, 2.0)
    figures = memorisation_figures(samples, closeness(1.0, 0.3, 0.9), "space")
    assert figures == pytest.approx(
        {
            "memorisation_space_found": None,  # too few images
            "memorisation_space_copies": 2,
            "memorisation_space_held_out_copies": 1,
            "memorisation_space_p_value": fisher(2, 4, 1, 3),
            "memorisation_space_ratio_smallest": 0.1,
            "memorisation_space_held_out_ratio_smallest": 0.3,
            "memorisation_space_ratio_median": 0.4,
            "memorisation_space_held_out_ratio_median": 0.9,
        }
    )


@pytest.mark.parametrize(
    ("copies", "held_out_copies", "held_out", "found"),
    [(20, 0, 200, True), (2, 2, 200, False), (20, 0, 2, None)],
)
def test_found_is_none_if_images_are_too_few(copies, held_out_copies, held_out, found):
    def closeness(copies, count):
        ratios = torch.ones(count)
        ratios[:copies] = 0.1
        return Closeness(ratios, torch.zeros(count).long(), torch.zeros(count).bool())

    samples, others = closeness(copies, 20), closeness(held_out_copies, held_out)
    assert memorisation_figures(samples, others, "space")["memorisation_space_found"] is found


@pytest.mark.parametrize("times", [6, 8, 30])
@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_many_duplicates_of_a_training_image_do_not_hide_its_copies(times, spread):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(600, 32, generator=generator)
    train[:times] = train[0] + spread * torch.randn(times, 32, generator=generator)
    duplicates = Duplicates.from_neighbours(
        *nearest_neighbours([train], [train], LOCAL_NEIGHBOURS, exclude_self=True)
    )
    copies = train[0] + 0.05 * torch.randn(20, 32, generator=generator)
    others = torch.randn(20, 32, generator=generator)
    assert measure_closeness([copies], [-copies], [train], duplicates).copies == 20
    assert measure_closeness([others], [-others], [train], duplicates).copies == 0
    assert duplicates.count == times


def test_identical_training_images_give_finite_ratios():
    train = torch.zeros(8, 3)
    duplicates = Duplicates.from_neighbours(
        *nearest_neighbours([train], [train], LOCAL_NEIGHBOURS, exclude_self=True)
    )
    assert duplicates.ratios.tolist() == [0] * 8
    found = measure_closeness([train[:1], train[:1] + 1], [train[:2]], [train], duplicates)
    assert found.ratios.tolist() == [0, 0]
