"""The denoiser as its training starts with it: new, or one that was trained before."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel

from hf_latent.errors import UserError
from hf_latent.models.load import load_denoiser
from hf_latent.models.presets import create_denoiser, measure_compression
from hf_latent.pipeline.denoise import check_latents
from hf_latent.pipeline.samplers import get_objective
from hf_latent.training.denoiser_config import DenoiserConfig


def start_denoiser(
    config: DenoiserConfig,
    vae: AutoencoderKL | AutoencoderTiny,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
) -> UNet2DModel:
    """Create the denoiser that a training starts with.

    Args:
        config: the preset, or the pretrained denoiser.
        vae: the autoencoder whose latents it will denoise.
        image_shape: `(C, H, W)`.
        num_classes: of the images; None: an unconditional denoiser.

    Returns:
        The denoiser in float32, all its weights trainable.

    Raises:
        UserError: if the pretrained one cannot be loaded or does not fit the run, the images' size
            does not fit the denoiser, or there are no classes to guide by.
    """
    if num_classes is None and config.guidance:
        flag = next(iter(config.guidance))
        raise UserError(f"--{flag} needs images with classes, and --conditional: leave it out")
    torch.manual_seed(config.seed)
    if config.pretrained_unet is None:
        unet = create_denoiser(config.preset, vae, image_shape, num_classes)
    else:
        unet = _load_pretrained(config.pretrained_unet, config.objective, num_classes)
        latent_shape = measure_compression(vae, image_shape).latent_shape
        _fit_latents(unet, config.pretrained_unet, config.vae, latent_shape)
    unet.train().requires_grad_(True)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        unet.compile()
    return unet


def _load_pretrained(name: str, objective: str, num_classes: int | None) -> UNet2DModel:
    """Load a denoiser of this run's objective and classes."""
    unet, scheduler = load_denoiser(name)
    before = None if scheduler is None else get_objective(scheduler)
    if before not in (None, objective):
        raise UserError(
            f"--pretrained_unet {name} was trained with --objective {before}, and this run has "
            f"{objective}: pass --objective {before}"
        )
    embeddings = unet.config.num_class_embeds
    needed = None if num_classes is None else num_classes + 1  # the last is the null label's
    if unet.config.class_embed_type is not None or embeddings != needed:
        kind = unet.config.class_embed_type or ""
        raise UserError(
            f"--pretrained_unet {name} has {embeddings or kind or 'no'} class embeddings, and this "
            f"run needs {needed or 'none'} (its classes and the null label): name a denoiser of "
            "the same classes, or set --conditional as it was"
        )
    return unet


def _fit_latents(unet: UNet2DModel, name: str, vae: str, latent_shape: tuple[int, ...]) -> None:
    """Refuse a denoiser of other latents, and tell a fitting one their size."""
    channels, height, width = latent_shape
    found = (unet.config.in_channels, unet.config.out_channels)
    if found != (channels, channels):
        raise UserError(
            f"--pretrained_unet {name} takes {found[0]} channels and gives {found[1]}, and the "
            f"latents of --vae {vae} have {channels}: name the autoencoder that it was trained with"
        )
    try:
        check_latents(unet, (1, *latent_shape))
    except ValueError as error:
        raise UserError(f"--pretrained_unet {name}: {error}; choose another --resolution") from None
    unet.register_to_config(sample_size=height if height == width else (height, width))
