"""The autoencoder at the start of its training: new or pretrained, whole or only the decoder."""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import nn

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.errors import UserError
from hf_latent.models.fold import prepare_for_training
from hf_latent.models.linear_start import start_from_components
from hf_latent.models.load import Autoencoder
from hf_latent.models.presets import create_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.equivariance import Transform

# Of the training images that a linear start is fitted to: positions enough for its widest layer.
FITTED_PIXELS, FITTED_IMAGES = 2**18, (8, 256)


class Reconstruction(NamedTuple):
    """What a training step needs of an autoencoder's forward pass.

    Attributes:
        images: `(B, C, H, W)` float, decoded from posterior samples.
        mean: `(B, c, h, w)`, the posterior's mean.
        logvar: `(B, c, h, w)`, the posterior's log-variance.
        transformed: decoded from the same samples, transformed; None without a transform.
    """

    images: torch.Tensor
    mean: torch.Tensor
    logvar: torch.Tensor
    transformed: torch.Tensor | None = None


class TrainableAutoencoder(nn.Module):
    """Encode, sample and decode in one forward pass.

    Distributed training averages only gradients that pass through the wrapped module's forward, and
    `AutoencoderKL.forward` does not return the posterior.
    """

    def __init__(self, vae: AutoencoderKL):
        """Wrap the autoencoder to train."""
        super().__init__()
        self.vae = vae

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor, transform: Transform | None = None
    ) -> Reconstruction:
        """Reconstruct images from posterior samples.

        Args:
            images: `(B, C, H, W)` float in [-1, 1].
            noise: `(B, c, h, w)`, standard normal.
            transform: also decode the latents transformed by it.
        """
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        transformed = None
        if transform is not None:
            transformed = self.vae.decode(transform(latents)).sample
        decoded = self.vae.decode(latents).sample
        return Reconstruction(decoded, posterior.mean, posterior.logvar, transformed)


def start_autoencoder(
    config: AutoencoderConfig,
    image_shape: tuple[int, int, int],
    pretrained: Autoencoder | None = None,
) -> AutoencoderKL:
    """Create the autoencoder to train, or prepare a pretrained one.

    Args:
        config: names the preset.
        image_shape: `(C, H, W)`.
        pretrained: the autoencoder of `config.pretrained_vae`; None: a new one.

    Returns:
        The autoencoder in float32. With `train_decoder_only` its encoder has no gradient, and its
        latents keep their scale.

    Raises:
        UserError: if the pretrained autoencoder has no posterior.
    """
    if pretrained is None:
        channels, height, width = image_shape
        torch.manual_seed(config.seed)
        size = height if height == width else (height, width)
        vae = create_autoencoder(config.preset, channels, size, **config.architecture())
    else:
        vae = pretrained
        if not isinstance(vae, AutoencoderKL):
            raise UserError(
                f"--pretrained_vae {config.pretrained_vae} is a {type(vae).__name__}, which has no "
                "posterior to train: name an AutoencoderKL"
            )
        if not config.train_decoder_only:
            vae = prepare_for_training(vae)
    vae.train().requires_grad_(True)
    if config.train_decoder_only:
        for module in (vae.encoder, vae.quant_conv):
            if module is not None:
                module.requires_grad_(False)
    if config.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if config.compile:
        # The last layer is not compiled: the adaptive weight needs gradients at it.
        for module in (vae.encoder, vae.decoder.mid_block, *vae.decoder.up_blocks):
            module.compile(dynamic=False)
    return vae


def start_linearly(vae: AutoencoderKL, dataset: ImageDataset, kl_weight: float) -> None:
    """Let a new autoencoder start from principal components of some training images.

    Args:
        vae: new, on the CPU; it is changed.
        dataset: the training images. Every process reads the same.
        kl_weight: of the training.
    """
    _, height, width = dataset.image_shape
    fewest, most = FITTED_IMAGES
    count = min(max(FITTED_PIXELS // (height * width), fewest), most)
    start_from_components(vae, dataset.evenly_spaced(count).read(), kl_weight)
