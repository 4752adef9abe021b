import pytest
import torch

from hf_latent.evaluation.features import load_feature_network
from hf_latent.evaluation.generation import frechet_distance, pooled_features


def gaussians(count, mean, scale):
    generator = torch.Generator().manual_seed(count)
    return mean + scale * torch.randn(count, 6, generator=generator, dtype=torch.float64)


def test_a_set_is_at_no_distance_from_itself():
    features = gaussians(50, 0.0, 1.0).float()
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_the_distance_of_gaussians_is_the_formulas():
    a, b = gaussians(400, 0.0, 1.0), gaussians(500, 0.7, 2.0)
    covariances = [torch.cov(x.T) for x in (a, b)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt()
    expected = (a.mean(0) - b.mean(0)).square().sum()
    expected += covariances[0].trace() + covariances[1].trace() - 2 * roots.sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_pooled_features_are_of_the_image_on_white_and_do_not_depend_on_the_batch():
    network = load_feature_network("efficientnet-lite0")
    images = torch.rand(3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = pooled_features(network, images)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(pooled_features(network, images[1:2])[0], features[1])
    images[:, 3] = -1  # all transparent: whatever the colour, white is seen
    white = pooled_features(network, torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(pooled_features(network, images), white.expand(3, -1))
