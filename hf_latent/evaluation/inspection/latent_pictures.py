"""Pictures of the latent: its channels, the way between two latents, and noise in it."""

import torch

from hf_latent.evaluation.reconstruction import reconstruct
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images

MOST_CHANNELS = 16
# In deviations of the latent. The last is as much noise as there is latent.
NOISE_LEVELS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
STEPS = 8


def channel_maps(latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Show each channel of latents as a grey image, three deviations around 0 from black to white.

    Args:
        latents: `(B, c, h, w)` float, near unit variance.
        height: of the maps.
        width: of the maps.

    Returns:
        `(B, min(c, 16), 1, height, width)` float in [0, 1], each value a rectangle.
    """
    shown = (latents[:, :MOST_CHANNELS] / 6 + 0.5).clamp(0, 1)
    return torch.nn.functional.interpolate(shown, (height, width), mode="nearest")[:, :, None]


@torch.no_grad()
def channels_picture(
    vae: Autoencoder, images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Return rows of an image, its reconstruction and each latent channel.

    Args:
        vae: the autoencoder.
        images: `(B, C, H, W)` float in [-1, 1].
        mean: `(c,)` float, the latent's mean in each channel.
        std: `(c,)` float, its deviation.

    Returns:
        `(B, 2 + min(c, 16), C, H, W)` float in [0, 1]; where C is 4, channels are opaque.
    """
    latents = encode_images(vae, images.to(vae.device), sample_posterior=False).float().cpu()
    mean, std = (x.float().view(1, -1, 1, 1) for x in (mean, std))
    latents = (latents - mean) / std.clamp(min=1e-6)
    maps = channel_maps(latents, *images.shape[2:]).expand(-1, -1, images.shape[1], -1, -1).clone()
    if images.shape[1] == 4:
        maps[:, :, 3] = 1
    pair = torch.stack([images, reconstruct(vae, images).clamp(-1, 1)], dim=1) / 2 + 0.5
    return torch.cat([pair, maps], dim=1)


@torch.no_grad()
def interpolation_picture(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Return rows that go from one image to another, in a straight line through the latent space.

    Args:
        vae: the autoencoder.
        images: `(2 B, C, H, W)` float in [-1, 1]: from the first half to the second.

    Returns:
        `(B, 8, C, H, W)` float near [0, 1].
    """
    latents = encode_images(vae, images.to(vae.device), sample_posterior=False)
    start, end = latents.chunk(2)
    rows = [
        decode_latents(vae, torch.lerp(start, end, step / (STEPS - 1))) for step in range(STEPS)
    ]
    return torch.stack(rows, dim=1).float().cpu() / 2 + 0.5


@torch.no_grad()
def noisy_latents(
    vae: Autoencoder, images: torch.Tensor, std: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return rows of a reconstruction, and of the same with ever more noise in its latent.

    Args:
        vae: the autoencoder.
        images: `(B, C, H, W)` float in [-1, 1].
        std: `(c,)` float, the latent's deviation in each channel.
        generator: draws the noise.

    Returns:
        `(B, 1 + len(NOISE_LEVELS), C, H, W)` float near [0, 1].
    """
    latents = encode_images(vae, images.to(vae.device), sample_posterior=False)
    noise = torch.randn(latents.shape, generator=generator) * std.float().view(1, -1, 1, 1)
    noise = noise.to(latents)
    rows = [decode_latents(vae, latents + level * noise) for level in (0.0, *NOISE_LEVELS)]
    return torch.stack(rows, dim=1).float().cpu() / 2 + 0.5
