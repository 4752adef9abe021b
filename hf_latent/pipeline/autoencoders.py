"""The kinds of autoencoders: one row for each class of diffusers that can be used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from diffusers import ModelMixin
from torch.nn import functional

Autoencoder: TypeAlias = ModelMixin  # of a class in KINDS
OfConfig: TypeAlias = Callable[[Mapping[str, Any]], Any]
# Mean and deviation: numbers, or one value per channel, `(c, 1, 1)`.
Scale: TypeAlias = tuple[torch.Tensor | float, torch.Tensor | float]


def _levels(entry: str) -> OfConfig:
    """Return a function that gives f: an encoder halves the size after each level but the last."""
    return lambda config: 2 ** (len(config[entry]) - 1)


BLOCKS = _levels("block_out_channels")


def _scale_of_config(vae: Autoencoder, latents: torch.Tensor) -> Scale:
    """Return `latents_mean + shift_factor` and `latents_std / scaling_factor`.

    Models have these entries in their configuration and never apply them (`scaling_factor`: LDM,
    Rombach et al. 2022, section D.1; `shift_factor`: Stable Diffusion 3; the per-channel pair:
    Playground 2.5). In an autoencoder with a folded scale all four are neutral.
    """

    def entry(name: str, neutral: float) -> torch.Tensor | float:
        value = vae.config.get(name)
        return neutral if value is None else latents.new_tensor(value).view(-1, 1, 1)

    mean = entry("latents_mean", 0.0) + (vae.config.get("shift_factor") or 0.0)
    return mean, entry("latents_std", 1.0) / (vae.config.get("scaling_factor") or 1.0)


def _scale_of_batch_norm(vae: Autoencoder, latents: torch.Tensor) -> Scale:
    """Return the running statistics of the batch norm `bn`, as `Flux2Pipeline` uses them."""
    deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    mean, deviation = (x.view(-1, 1, 1).to(latents) for x in (vae.bn.running_mean, deviation))
    return mean, deviation


@dataclass(frozen=True)
class AutoencoderKind:
    """How to use one class of autoencoders. All but `scale` get its configuration.

    Attributes:
        output: what the encoder's output is called: `latent_dist`, a posterior, or other latents.
        factor: returns the height of an image divided by that of the encoder's latents.
        latent_channels: returns the number of channels of the encoder's latents.
        image_channels: returns the number of channels of an image.
        image_size: returns the one height and width of all images; None: any.
        unit_pixels: whether it takes and gives images in [0, 1] and not in [-1, 1].
        patch: n: the denoiser sees n x n of the encoder's latents as one of n * n more channels.
        scale: `scale(vae, latents)` returns the mean and deviation that latents, as patches, have
            before they are normalised.
    """

    output: str = "latent_dist"
    factor: OfConfig = BLOCKS
    latent_channels: OfConfig = itemgetter("latent_channels")
    image_channels: OfConfig = itemgetter("in_channels")
    image_size: OfConfig = lambda config: None
    unit_pixels: bool = False
    patch: int = 1
    scale: Callable[[Autoencoder, torch.Tensor], Scale] = _scale_of_config

    @property
    def has_posterior(self) -> bool:
        """Whether it encodes into a normal distribution and not into latents."""
        return self.output == "latent_dist"

    @property
    def is_plain(self) -> bool:
        """Whether pixels are in [-1, 1] and only the configuration has a scale."""
        return not self.unit_pixels and self.scale is _scale_of_config

    def to_patches(self, latents: torch.Tensor) -> torch.Tensor:
        """Convert the encoder's latents to the denoiser's shape `(B, c, h, w)`."""
        return latents if self.patch == 1 else functional.pixel_unshuffle(latents, self.patch)

    def from_patches(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `to_patches`."""
        return latents if self.patch == 1 else functional.pixel_shuffle(latents, self.patch)


# By name: importing a class of diffusers imports what it needs, such as transformers.
KINDS = {
    # Stable Diffusion, SDXL, SD3, FLUX.1 and Z-Image; the only kind that train_vae.py trains.
    "AutoencoderKL": AutoencoderKind(),
    "AsymmetricAutoencoderKL": AutoencoderKind(factor=_levels("down_block_out_channels")),
    "AutoencoderKLFlux2": AutoencoderKind(patch=2, scale=_scale_of_batch_norm),
    "AutoencoderKLHunyuanImage": AutoencoderKind(factor=itemgetter("spatial_compression_ratio")),
    # TAESD and its like.
    "AutoencoderTiny": AutoencoderKind("latents", _levels("encoder_block_out_channels")),
    # DC-AE, of SANA.
    "AutoencoderDC": AutoencoderKind("latent", _levels("encoder_block_out_channels")),
    # Its latents are those before the quantisation, which is the decoder's first step.
    "VQModel": AutoencoderKind(
        "latents", latent_channels=lambda x: x["vq_embed_dim"] or x["latent_channels"]
    ),
    # It normalises its latents itself, and resizes every image to one size.
    "AutoencoderRAE": AutoencoderKind(
        "latent",
        factor=itemgetter("patch_size"),
        latent_channels=itemgetter("encoder_hidden_size"),
        image_channels=itemgetter("num_channels"),
        image_size=lambda x: x["encoder_input_size"] // x["encoder_patch_size"] * x["patch_size"],
        unit_pixels=True,
        scale=lambda vae, latents: (0.0, 1.0),
    ),
}


def find_kind(vae: Autoencoder) -> AutoencoderKind:
    """Return the row of an autoencoder's class, or of the class that it derives from.

    Raises:
        ValueError: if there is none, naming the classes that have one.
    """
    own = type(getattr(vae, "_orig_mod", vae))  # torch.compile(vae) wraps it
    return named_kind(*(ours.__name__ for ours in own.__mro__))


def named_kind(*names: str) -> AutoencoderKind:
    """Return the row of the first of a class's names that has one; errors are as of `find_kind`."""
    for name in names:
        if name in KINDS:
            return KINDS[name]
    raise ValueError(f"{names[0]} is no autoencoder for images: use {', '.join(KINDS)}")


def downsampling_factor(vae: Autoencoder) -> int:
    """Return f, the image's height (or width) divided by the denoiser's latents'."""
    kind = find_kind(vae)
    return kind.factor(vae.config) * kind.patch


def latent_channels(vae: Autoencoder) -> int:
    """Return c, the number of channels that the denoiser sees."""
    kind = find_kind(vae)
    return kind.latent_channels(vae.config) * kind.patch**2


def image_channels(vae: Autoencoder) -> int:
    """Return C, the number of channels of an image."""
    return find_kind(vae).image_channels(vae.config)


def normalize_latents(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Convert an encoder's latents to the denoiser's shape `(B, c, h, w)` and scale.

    They become `(latents - mean) / deviation`, see `AutoencoderKind.scale`.
    """
    kind = find_kind(vae)
    latents = kind.to_patches(latents)
    mean, deviation = kind.scale(vae, latents)
    return (latents - mean) / deviation


def denormalize_latents(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Convert latents `(B, c, h, w)` to the decoder's shape and scale.

    It is the inverse of `normalize_latents`.
    """
    kind = find_kind(vae)
    mean, deviation = kind.scale(vae, latents)
    return kind.from_patches(latents * deviation + mean)
