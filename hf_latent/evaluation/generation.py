"""How close generated images come to real ones."""

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hf_latent.evaluation.features import EfficientNetLite, as_rgb
from hf_latent.evaluation.reconstruction import composite

BATCH_SIZE = 100


@torch.no_grad()
def pooled_features(network: EfficientNetLite, images: torch.Tensor) -> torch.Tensor:
    """Compute one feature vector an image; RGBA images are composited on white.

    Args:
        network: frozen.
        images: `(N, C, H, W)` float in [-1, 1], one, three or four channels.

    Returns:
        `(N, 1280)` float32 on the CPU.
    """
    pooled = []
    for batch in images.split(BATCH_SIZE):
        if batch.shape[1] == 4:
            batch = composite(batch / 2 + 0.5, 1.0) * 2 - 1
        maps = network.network.extract_features(network.enlarge(as_rgb(batch)))
        pooled.append(maps.mean((2, 3)).cpu())
    return torch.cat(pooled)


class _AsTheyAre(nn.Identity):
    """Hands features over to torchmetrics, which asks for their number."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian (Heusel et al. 2017).

    It is biased by the number of images: compare at equal numbers only, and put real images against
    other real images at that number beside it.

    Args:
        features: `(N, d)` float.
        reference: `(M, d)` float.

    Returns:
        The distance, 0 for equal means and covariances.
    """
    metric = FrechetInceptionDistance(feature=_AsTheyAre(features.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return metric.compute().item()
