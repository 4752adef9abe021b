"""Step 1 of 4: images to latents."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils.torch_utils import randn_tensor


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


def downsampling_factor(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Return f, the image's height (or width) divided by the latents'."""
    encoder_blocks = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(encoder_blocks) - 1)


def normalize_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Convert an encoder's latents `(B, c, h, w)` to the scale that the denoiser was trained on.

    `(latents - shift_factor - latents_mean) / latents_std * scaling_factor`, with the four entries
    of the configuration that diffusers' models carry and never apply themselves
    (`scaling_factor`: LDM, Rombach et al. 2022, section D.1; `shift_factor`: Stable Diffusion 3;
    the per-channel pair: Playground 2.5). In a folded autoencoder all four are neutral.
    `denormalize_latents` in decode.py is the exact inverse.
    """
    if vae.config.get("shift_factor"):
        latents = latents - vae.config.shift_factor
    if vae.config.get("latents_mean") is not None:
        latents = latents - latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    if vae.config.get("latents_std") is not None:
        latents = latents / latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
    return latents * vae.config.scaling_factor


def check_images(vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor) -> None:
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
    if channels != vae.config.in_channels:
        raise ValueError(
            f"the images have {channels} channels and the autoencoder takes "
            f"{vae.config.in_channels}: convert the images, or use another autoencoder"
        )
    f = downsampling_factor(vae)
    if height % f or width % f:
        raise ValueError(
            f"images of {height}x{width} do not fit the autoencoder: "
            f"height and width must be multiples of its downsampling factor {f}"
        )


def check_image_channels(vae: AutoencoderKL | AutoencoderTiny, channels: int) -> None:
    """Check that an autoencoder is for images of as many channels as the model's own.

    Raises:
        ValueError: if it is not.
    """
    if vae.config.in_channels != channels:
        raise ValueError(
            f"the given vae takes images of {vae.config.in_channels} channels and the model's own "
            f"of {channels}: give the autoencoder that the denoiser was trained with"
        )


def encode_posteriors(
    vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor
) -> LatentPosteriors:
    """Encode images. Training, latent cache and sampling all use this function.

    Args:
        vae: the autoencoder. An AutoencoderTiny has no posterior: its deviation is 0.
        images: `(B, C, H, W)` float in [-1, 1]; H and W multiples of f.

    Returns:
        Mean and standard deviation, `(B, c, H/f, W/f)` float32 each, on the denoiser's scale.

    Raises:
        ValueError: if the channels or the size do not fit the autoencoder.
    """
    check_images(vae, images)
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latents"):
        mean, std = encoded.latents, torch.zeros_like(encoded.latents)
    else:
        mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
    scale = normalize_latents(vae, torch.ones_like(mean[:1]))
    scale = scale - normalize_latents(vae, torch.zeros_like(mean[:1]))  # without the shift
    return LatentPosteriors(normalize_latents(vae, mean).float(), (std * scale).float())


def encode_images(
    vae: AutoencoderKL | AutoencoderTiny,
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
