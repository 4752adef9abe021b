import math

import numpy as np
import pytest
import torch
from tqdm import tqdm

from hf_latent.data.images import ImagesConfig, open_images
from hf_latent.data.images.pixels import to_uint8
from hf_latent.evaluation.features.extractors import image_vectors
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.measures.interpolation import (
    NEIGHBOURS,
    interpolate_to_neighbours,
    measure_ifid,
    spherical_midpoints,
)
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.models.load import load_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors

CLOTHES = ImagesConfig(data="fashion_mnist", resize_mode="pad")


def make_latents(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def slerp(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shoemake's formula at t = 1/2, for one pair."""
    angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return math.sin(angle / 2) / math.sin(angle) * (a + b)


def candidates_of(latent: torch.Tensor, train: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the midpoints to the ten nearest by angle, and the probability of each, one by one."""
    own = latent.flatten().double().numpy()
    others = [x.flatten().double().numpy() for x in train]
    cosines = [own @ x / np.linalg.norm(own) / np.linalg.norm(x) for x in others]
    nearest = sorted(range(len(others)), key=lambda i: -cosines[i])[:10]
    weights = np.array([math.exp(-np.mean((own - others[i]) ** 2)) for i in nearest])
    return np.stack([slerp(own, others[i]) for i in nearest]), weights / weights.sum()


def test_midpoints_are_those_of_the_sphere():
    a, b = torch.tensor([[3.0, 0, 0], [0, 2, 0]]), torch.tensor([[0.0, 3, 0], [0, 2, 0]])
    expected = torch.tensor([[3 / math.sqrt(2), 3 / math.sqrt(2), 0], [0, 2, 0]])
    torch.testing.assert_close(spherical_midpoints(a, b), expected)


def test_each_latent_moves_to_one_of_its_ten_nearest_by_angle():
    latents, train = make_latents(130, 0), make_latents(210, 1)
    train *= torch.linspace(0.3, 3, 210).view(-1, 1, 1, 1)  # a long one is near by its angle only
    moved = interpolate_to_neighbours(latents, train, torch.Generator().manual_seed(0))
    places = set()
    for latent, own in zip(latents, moved, strict=True):
        errors = np.abs(candidates_of(latent, train)[0] - own.flatten().numpy()).max(1)
        assert errors.min() < 1e-5
        places.add(int(errors.argmin()))
    assert places == set(range(NEIGHBOURS))


def test_neighbours_are_drawn_by_their_squared_difference():
    latent, train = make_latents(1, 0), 3 * make_latents(40, 1)
    copies = latent.expand(20_000, -1, -1, -1)
    moved = interpolate_to_neighbours(copies, train, torch.Generator().manual_seed(0))
    points, expected = candidates_of(latent[0], train)
    errors = np.abs(points[None] - moved.flatten(1).numpy()[:, None]).max(2)
    shares = np.bincount(errors.argmin(1), minlength=10) / len(moved)
    assert expected.max() > 2 * expected.min()
    np.testing.assert_allclose(shares, expected, atol=0.012)  # four deviations


@pytest.fixture(scope="module")
def images():
    splits = open_images(CLOTHES)
    return splits.validation.evenly_spaced(40), splits.train


def ifid(vae, held_out, train, seed=0):
    extractor = ShortVectors()
    vectors = list(image_vectors(held_out, extractor, 16))
    bar = tqdm(disable=True)
    return measure_ifid(vae, held_out, train, vectors, extractor, 16, seed, bar)


def test_ifid_is_the_distance_of_what_is_decoded_to_the_held_out_images(images):
    vae, extractor = load_autoencoder("fashion-mnist-f4").eval(), ShortVectors()
    held_out, train = images[0], images[1].evenly_spaced(60)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        latents, neighbours = (
            torch.cat(
                [
                    vae.encode(x.read(rows)).latent_dist.sample(generator)
                    for rows in torch.arange(len(x)).split(16)
                ]
            )
            for x in (held_out, train)
        )
        moved = interpolate_to_neighbours(latents, neighbours, generator)
        decoded = extractor(to_uint8(vae.decode(moved).sample))
    expected = frechet_distance([decoded], [extractor(to_uint8(held_out.read()))])
    assert ifid(vae, held_out, train, seed=7) == pytest.approx(expected, rel=1e-4)
    assert ifid(vae, held_out, train, seed=8) != pytest.approx(expected, rel=1e-4)


def test_ifid_of_latents_with_copies_of_themselves_is_that_of_reconstructions(images):
    """Any neighbour that is not the near one gives another image, and another distance."""
    vae, extractor = load_autoencoder("fashion-mnist-f4").eval(), ShortVectors()
    with torch.no_grad():  # a posterior without noise, so that copies have equal latents
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30
    held_out = images[0]
    copies = held_out.subset(np.repeat(np.arange(len(held_out)), NEIGHBOURS))
    decoded = extractor(to_uint8(reconstruct(vae, held_out.read())))
    expected = frechet_distance([decoded], [extractor(to_uint8(held_out.read()))])
    assert ifid(vae, held_out, copies) == pytest.approx(expected, rel=1e-3)
    others = images[1].evenly_spaced(len(copies))
    assert ifid(vae, held_out, others) != pytest.approx(expected, rel=1e-2)
