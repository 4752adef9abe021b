"""Step 1 of 4: images to latents."""

from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from .autoencoders import (
    Autoencoder,
    downsampling_factor,
    find_kind,
    image_channels,
    normalize_latents,
)


@dataclass(frozen=True)
class LatentPosteriors:
    """An encoder's output for B images: a normal distribution for each latent value.

    Both tensors are on the denoiser's scale (see `normalize_latents`).

    Attributes:
        mean: `(B, c, h, w)` float32.
        std: `(B, c, h, w)` float32, standard deviation; 0 if the autoencoder has no posterior.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @property
    def var(self) -> torch.Tensor:
        """The variance, `(B, c, h, w)`."""
        return self.std.square()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.mean)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Draw latents `(B, c, h, w)`, given standard normal noise of that shape."""
        return self.mean + self.std * noise

    def to(self, device: torch.device | str) -> "LatentPosteriors":
        """Move both tensors to a device."""
        return LatentPosteriors(self.mean.to(device), self.std.to(device))

    def rows(self, start: int, stop: int) -> "LatentPosteriors":
        """Return the images from `start` to `stop`, as views."""
        return LatentPosteriors(self.mean[start:stop], self.std[start:stop])


def check_images(vae: Autoencoder, images: torch.Tensor) -> None:
    """Check that an autoencoder can encode images.

    Raises:
        ValueError: if dtype, shape, channels or size do not fit the autoencoder.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a float tensor (B, C, H, W) in [-1, 1], "
            f"not {tuple(images.shape)} {images.dtype}"
        )
    channels, height, width = images.shape[1:]
    takes, size = image_channels(vae), find_kind(vae).image_size(vae.config)
    if channels != takes:
        raise ValueError(
            f"the images have {channels} channels and the autoencoder takes "
            f"{takes}: convert the images, or use another autoencoder"
        )
    if size is not None and (height, width) != (size, size):
        raise ValueError(
            f"images of {height}x{width} do not fit the autoencoder, which takes {size}x{size} only"
        )
    f = downsampling_factor(vae)
    if height % f or width % f:
        raise ValueError(
            f"images of {height}x{width} do not fit the autoencoder: "
            f"height and width must be multiples of its downsampling factor {f}"
        )


def check_image_channels(vae: Autoencoder, channels: int) -> None:
    """Check that an autoencoder is for images of as many channels as the model's own.

    Raises:
        ValueError: if it is not.
    """
    takes = image_channels(vae)
    if takes != channels:
        raise ValueError(
            f"the given vae takes images of {takes} channels and the model's own "
            f"of {channels}: give the autoencoder that the denoiser was trained with"
        )


def encode_posteriors(vae: Autoencoder, images: torch.Tensor) -> LatentPosteriors:
    """Encode images. Training, latent cache and sampling all use this function.

    Args:
        vae: the autoencoder. If it has no posterior, the deviation is 0.
        images: `(B, C, H, W)` float in [-1, 1]; H and W multiples of f.

    Returns:
        Mean and standard deviation, `(B, c, H/f, W/f)` float32 each, on the denoiser's scale.

    Raises:
        ValueError: if the channels or the size do not fit the autoencoder.
    """
    check_images(vae, images)
    kind, images = find_kind(vae), images.to(vae.dtype)
    encoded = vae.encode(images / 2 + 0.5 if kind.unit_pixels else images)
    latents = getattr(encoded, kind.output)
    mean = normalize_latents(vae, latents.mean if kind.has_posterior else latents)
    if not kind.has_posterior:
        return LatentPosteriors(mean.float(), torch.zeros_like(mean, dtype=torch.float32))
    std = kind.to_patches(latents.std) / kind.scale(vae, mean)[1]
    return LatentPosteriors(mean.float(), std.float())


def encode_images(
    vae: Autoencoder,
    images: torch.Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    sample_posterior: bool = True,
) -> torch.Tensor:
    """Encode images into unit-variance latents.

    Args:
        vae: a frozen autoencoder.
        images: `(B, C, H, W)` float in [-1, 1]; H and W multiples of f.
        generator: draws the posterior sample; a list has one for each image.
        sample_posterior: draw from the posterior, as in training; if False, return its mean.

    Returns:
        `(B, c, H/f, W/f)` in the autoencoder's dtype, zero mean and unit variance per channel over
        the training set.

    Raises:
        ValueError: if the channels or the size do not fit the autoencoder.
    """
    posteriors = encode_posteriors(vae, images)
    latents = posteriors.mean
    if sample_posterior:
        noise = randn_tensor(latents.shape, generator, latents.device, vae.dtype)
        latents = posteriors.sample(noise.float())
    return latents.to(vae.dtype)
