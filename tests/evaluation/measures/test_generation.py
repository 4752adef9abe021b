import math
from itertools import pairwise
from statistics import stdev

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.shards import Selection, write_shards
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.measures import generation
from hf_latent.evaluation.measures.generation import (
    FrechetDistance,
    compare_sets,
    frechet_distance,
    kernel_distances,
    measure_manifold,
)

COUNT = 200
EVERY = 5  # of the features: distances between long vectors take seconds each


def gaussians(count, mean, scale, length=6, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + count)
    return mean + scale * torch.randn(count, length, generator=generator, dtype=torch.float64)


class GivenFeatures(torch.nn.Identity):
    """A network for torchmetrics that returns given features."""

    num_features = 1280 // EVERY


@pytest.fixture(scope="module")
def extract():
    network = load_feature_extractor("efficientnet-lite0")
    with torch.no_grad():
        yield lambda images: torch.cat([network(x)[:, ::EVERY] for x in images.split(50)])


@pytest.fixture(scope="module")
def images():
    """The first 20 images of each class, and all others by class."""
    train = open_images(ImagesConfig(data="fashion_mnist", resize_mode="pad")).train
    rows = [(train.labels == label).nonzero().flatten() for label in range(10)]
    real = train.read_uint8(torch.cat([own[:20] for own in rows]))
    generator = torch.Generator().manual_seed(0)

    def others(classes: int) -> torch.Tensor:
        pool = torch.cat([own[20:] for own in rows[:classes]])
        drawn = torch.randperm(len(pool), generator=generator)[:COUNT]
        return train.read_uint8(pool[drawn])

    return real, others


@pytest.fixture(scope="module")
def real(images, extract):
    return extract(images[0])


@pytest.fixture(scope="module")
def others(images, extract):
    return extract(images[1](10))


def assert_rise(features, real):
    """Assert that FD and KID to the real features rise strictly from set to set."""
    assert {len(x) for x in features} == {COUNT}
    for distance in (
        [frechet_distance([x], [real]) for x in features],
        [kernel_distances([[x]], [[real]])[0] for x in features],
    ):
        assert all(a < b for a, b in pairwise(distance)), distance
        # So few real images have a distance too.
        assert distance[-1] > 2.5 * max(distance[0], 1e-4)


def test_a_set_has_distance_0_to_itself(real):
    assert frechet_distance(real.split(100), real.split(60)) == pytest.approx(0, abs=1e-3)
    assert frechet_distance([real.flip(0)], [real]) == pytest.approx(0, abs=1e-3)


def test_the_distance_over_blocks_equals_torchmetrics(real, others):
    metric = FrechetInceptionDistance(feature=GivenFeatures())
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(others.double(), real=False)
    expected = metric.compute().item()
    assert expected > 1
    assert frechet_distance(others.split(110), real.split(40)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("blocks", [1000, 70])
def test_the_distance_of_gaussians_follows_the_formula(blocks):
    a, b = gaussians(400, 0.0, 1.0), gaussians(500, 0.7, 2.0)
    covariances = [torch.cov(x.T) for x in (a, b)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt()
    expected = (a.mean(0) - b.mean(0)).square().sum()
    expected += covariances[0].trace() + covariances[1].trace() - 2 * roots.sum()
    found = frechet_distance(a.split(blocks), b.split(blocks))
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_the_distance_is_exact_for_features_far_from_0():
    a, b = gaussians(400, 0.0, 1.0), gaussians(500, 0.7, 2.0)
    near, far = frechet_distance([a], [b]), frechet_distance([a + 1e4], [b + 1e4])
    assert far == pytest.approx(near, rel=1e-4)


def test_too_few_images_have_no_distance():
    for rows in ((), (1,)):
        distance = FrechetDistance()
        for count in rows:
            distance.update(torch.zeros(count, 3), real=True)
        with pytest.raises(RuntimeError):
            distance.compute()


def test_distances_rise_with_blur(images, extract, real, others):
    chosen = images[1](10)
    found = [others]
    for sigma in (0.5, 1.0, 2.0):
        at = torch.arange(-8, 9)
        kernel = (-(at**2) / (2 * sigma**2)).exp()
        kernel = (kernel[:, None] * kernel[None] / kernel.sum() ** 2)[None, None]
        found.append(extract(F.conv2d(chosen.float(), kernel, padding=8).round().byte()))
    assert_rise(found, real)


def test_distances_rise_with_noise(images, extract, real, others):
    chosen = images[1](10).float()
    noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
    levels = [(chosen + std * noise).round().clamp(0, 255).byte() for std in (5, 15, 40)]
    assert_rise([others, *map(extract, levels)], real)


def test_distances_rise_with_dropped_classes(images, extract, real, others):
    assert_rise([others, *(extract(images[1](classes)) for classes in (7, 4, 1))], real)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_of_all_images_equals_torchmetrics(real, others):
    metric = KernelInceptionDistance(feature=GivenFeatures(), subsets=1, subset_size=COUNT)
    metric.update(real.double(), real=True)
    metric.update(others.double(), real=False)
    expected = metric.compute()[0].item()
    (found,) = kernel_distances([others.split(110)], [real.split(40)])
    assert found == pytest.approx(expected, rel=1e-6)


def test_each_pairs_kernel_distance_follows_the_formula():
    a, b = gaussians(2 * 30, 0.2, 1.0).split(30), gaussians(2 * 30, 0.0, 2.0, seed=1).split(30)

    def formula(x, y):
        def kernel(u, v):
            return (u.dot(v).item() / len(u) + 1) ** 3

        n = len(x)
        within = sum(
            kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j
        )
        across = sum(kernel(u, v) for u in x for v in y)
        return within / (n * (n - 1)) - 2 * across / n**2

    found = kernel_distances([[x] for x in a], [[y] for y in b])
    expected = [formula(x, y) for x, y in zip(a, b, strict=True)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert abs(found[0] - found[1]) > 1e-3


def naive_manifold(generated, real):
    """Compute the four figures from full matrices of distances."""

    def radius(x, k):
        others = torch.cdist(x, x).fill_diagonal_(torch.inf)
        return others.sort(dim=1).values[:, k - 1]

    between = torch.cdist(generated, real)
    in_real = between <= radius(real, 3)[None]
    in_generated = between <= radius(generated, 3)[:, None]
    in_larger = between <= radius(real, 5)[None]
    return {
        "precision": in_real.any(1).double().mean().item(),
        "recall": in_generated.any(0).double().mean().item(),
        "density": in_larger.sum().item() / (5 * len(generated)),
        "coverage": in_larger.any(0).double().mean().item(),
    }


@pytest.mark.parametrize("seed", range(6))
def test_manifold_figures_equal_those_of_full_distance_matrices(seed):
    generated = gaussians(61 + seed, 1.2, 0.8, seed=seed)
    real = gaussians(83 - seed, 0.0, 1.0, seed=seed)
    expected = naive_manifold(generated, real)
    assert all(0.1 < value < 0.9 for value in expected.values())
    single = [(61, 1)] if seed == 0 else [(61, 9)]  # one vector a block takes long
    for sizes in ((1000, 1000), (7, 20), (13, 83), *single):
        blocks = (x.float().split(size) for x, size in zip((generated, real), sizes, strict=True))
        found = measure_manifold(*blocks)
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_set_and_its_copy_cover_each_other(real):
    for copy in (real, real.flip(0)):
        figures = measure_manifold(copy.split(100), real.split(60))
        assert figures["precision"] == figures["recall"] == figures["coverage"] == 1


def test_sets_far_apart_do_not_touch():
    figures = measure_manifold([gaussians(50, 0, 1)], [gaussians(60, 100, 1)])
    assert set(figures.values()) == {0}


def test_a_narrow_set_has_precision_and_a_wide_one_recall():
    narrow, wide = gaussians(400, 0, 0.2, 2), gaussians(400, 0, 3, 2, seed=1)
    figures = measure_manifold([narrow], [wide])
    assert figures["precision"] > 0.9 and figures["recall"] < 0.1 and figures["coverage"] < 0.2
    swapped = measure_manifold([wide], [narrow])
    assert swapped["precision"] < 0.1 and swapped["recall"] > 0.9 and swapped["density"] < 0.1


@pytest.fixture
def selections(tmp_path, monkeypatch) -> tuple[Selection, Selection]:
    monkeypatch.setattr("hf_latent.data.shards.SHARD_ROWS", 12)
    a, b = gaussians(53, 0.2, 1.0).float(), gaussians(53, 0.0, 1.5, seed=1).float()
    written = write_shards(tmp_path, 53, lambda rows: {"a": a[list(rows)], "b": b[list(rows)]}, {})
    order = torch.randperm(53, generator=torch.Generator().manual_seed(0))
    return written.select("a"), written.select("b", order)


KEYS = ["fd", "fd_subset_images", "fd_subset_values", "fd_subset_std", "kid", "kid_std"]
KEYS += ["kid_subsets", "kid_subset_images", "precision", "recall", "density", "coverage"]


def test_two_sets_are_compared_with_their_spread(selections, monkeypatch):
    monkeypatch.setattr(generation, "KID_SUBSET_IMAGES", 9)
    a, b = (torch.cat(list(x)) for x in selections)
    figures = compare_sets(*selections, "real_")
    assert list(figures) == [f"real_{key}" for key in KEYS]
    figures = {key: figures[f"real_{key}"] for key in KEYS}
    assert figures["fd"] == pytest.approx(frechet_distance([a], [b]))
    fifths = [slice(10 * i, 10 * i + 10) for i in range(5)]
    expected = [frechet_distance([a[part]], [b[part]]) for part in fifths]
    assert figures["fd_subset_values"] == pytest.approx(expected)
    assert figures["fd_subset_images"] == 10
    assert figures["fd_subset_std"] == pytest.approx(stdev(expected))
    sixths = [slice(8 * i, 8 * i + 8) for i in range(6)]  # at most 9 of 53 each
    kernel = kernel_distances([[a[x]] for x in sixths], [[b[x]] for x in sixths])
    assert figures["kid"] == pytest.approx(sum(kernel) / 6)
    assert figures["kid_std"] == pytest.approx(stdev(kernel))
    assert (figures["kid_subsets"], figures["kid_subset_images"]) == (6, 8)
    manifold = {key: figures[key] for key in KEYS[-4:]}
    assert manifold == pytest.approx(naive_manifold(a.double(), b.double()), abs=1e-6)


def test_few_images_still_make_five_subsets(selections):
    figures = compare_sets(*selections)
    assert list(figures) == list(KEYS)
    assert (figures["kid_subsets"], figures["kid_subset_images"]) == (5, 10)
    numbers = [x for x in figures.values() if not isinstance(x, list)]
    assert all(map(math.isfinite, [*numbers, *figures["fd_subset_values"]]))


def test_copies_of_duplicates_lie_in_balls_of_radius_0():
    generator = torch.Generator().manual_seed(0)
    features = 30 * torch.randn(60, 16, generator=generator) + 100
    features[10:20] = features[0]
    figures = measure_manifold([features[:25], features[25:]], [features[:40], features[40:]])
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spoiled", [0, 1])
def test_features_that_are_not_finite_have_no_figures(value, spoiled):
    sets = [gaussians(20, 0, 1), gaussians(21, 0, 1)[:20]]
    sets[spoiled][7, 2] = value
    features, reference = ([x] for x in sets)
    for measure in (
        lambda: frechet_distance(features, reference),
        lambda: kernel_distances([features], [reference]),
        lambda: measure_manifold(features, reference),
    ):
        with pytest.raises(UserError, match="gave values that are not finite"):
            measure()
