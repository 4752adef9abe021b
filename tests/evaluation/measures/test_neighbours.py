import pytest
import torch

from hf_latent.evaluation.measures.neighbours import nearest_neighbours, squared_distances


def vectors(count: int, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed))


def by_cdist(queries, reference, k, exclude_self=False):
    """Find neighbours in float64, with the full matrix of distances."""
    distances = torch.cdist(
        queries.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    if exclude_self:
        distances.fill_diagonal_(torch.inf)
    return distances.topk(k, largest=False)


@pytest.mark.parametrize("k", [1, 4, 20])
@pytest.mark.parametrize("query_sizes", [(30,), (1, 17, 12)])
@pytest.mark.parametrize("reference_sizes", [(41,), (3, 20, 1, 17), (1,) * 41])
def test_neighbours_equal_those_of_the_full_distance_matrix(k, query_sizes, reference_sizes):
    queries, reference = vectors(30), vectors(41, seed=1)
    distances, places = nearest_neighbours(
        queries.split(query_sizes), reference.split(reference_sizes), k
    )
    expected, expected_places = by_cdist(queries, reference, k)
    assert (distances.dtype, places.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(places, expected_places)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("sizes", [(37,), (10, 1, 26), (1,) * 37])
@pytest.mark.parametrize("reference_sizes", [(37,), (5, 30, 2)])
def test_exclude_self(k, sizes, reference_sizes):
    own = vectors(37)
    distances, places = nearest_neighbours(
        own.split(sizes), own.split(reference_sizes), k, exclude_self=True
    )
    expected, expected_places = by_cdist(own, own, k, exclude_self=True)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(places, expected_places)
    assert (places != torch.arange(37)[:, None]).all()


def test_k_can_be_the_number_of_all_others():
    own = vectors(6)
    distances, places = nearest_neighbours(own.split(4), own.split(1), 5, exclude_self=True)
    assert distances.isfinite().all()
    assert places.sort().values.tolist() == [[x for x in range(6) if x != row] for row in range(6)]


def test_an_exact_duplicate_is_at_distance_0_and_is_found():
    own = vectors(20)
    own[17] = own[3]
    distances, places = nearest_neighbours(own.split(6), own.split(7), 1, exclude_self=True)
    assert (places[3], places[17]) == (17, 3)
    assert distances[3] == distances[17] == 0
    assert (distances > 0).sum() == 18


@pytest.mark.parametrize("gap", [1e-3, 1e-2, 0.1])
def test_small_distances_between_long_vectors_are_exact(gap):
    # Lengths around 350: the matrix product alone is some 0.1 off.
    reference = vectors(50, 1280) * 10
    steps = torch.nn.functional.normalize(vectors(50, 1280, seed=2)) * gap
    queries = (reference + steps).flip(0)
    distances, places = nearest_neighbours(queries.split(20), reference.split(30), 1)
    assert torch.equal(places[:, 0], torch.arange(49, -1, -1))
    expected = (queries.double() - reference.flip(0).double()).norm(dim=1)
    torch.testing.assert_close(distances[:, 0].double(), expected, rtol=1e-5, atol=0)
    inexact = squared_distances(queries, reference.flip(0)).diagonal().sqrt()
    assert (inexact.double() - expected).abs().max() > 1e-2 * gap


def test_squared_distances_equal_cdist_and_are_never_negative():
    a, b = vectors(30, 1280), vectors(20, 1280, seed=1)
    found = squared_distances(a, b)
    expected = torch.cdist(a.double(), b.double()).square()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert (squared_distances(a * 100, a * 100) >= 0).all()


def test_blocks_may_be_any_iterable_that_can_be_repeated():
    class Blocks:
        def __iter__(self):
            return iter(vectors(40).split(13))

    distances, places = nearest_neighbours(Blocks(), Blocks(), 3, exclude_self=True)
    expected, expected_places = by_cdist(vectors(40), vectors(40), 3, exclude_self=True)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(places, expected_places)


def test_on_queries_is_called_with_the_number_of_queries():
    told = []
    nearest_neighbours(vectors(30).split(13), vectors(9).split(4), 2, on_queries=told.append)
    assert told == [13, 13, 4]


def test_the_nearest_is_found_among_long_vectors_with_small_distances():
    generator = torch.Generator().manual_seed(0)
    far = 3000 * torch.ones(8)
    queries, reference = (
        far + torch.randn(n, 8, generator=generator, dtype=torch.float64).float() for n in (30, 50)
    )
    distances, places = nearest_neighbours([queries], [reference[:20], reference[20:]], 3)
    expected = torch.cdist(queries.double(), reference.double()).topk(3, largest=False)
    torch.testing.assert_close(places, expected.indices)
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-4, atol=0)
