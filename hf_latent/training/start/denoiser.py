"""The denoiser at the start of its training: new or pretrained."""

import torch

from hf_latent.errors import UserError
from hf_latent.models.load import Autoencoder, load_denoiser
from hf_latent.models.presets import create_denoiser, measure_compression
from hf_latent.pipeline.conditions import Denoiser
from hf_latent.pipeline.denoise import check_latents, prompt_width
from hf_latent.pipeline.samplers import get_objective
from hf_latent.training.denoiser_config import DenoiserConfig, DenoiserTrainingConfig


def start_denoiser(
    config: DenoiserConfig,
    vae: Autoencoder,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    text_width: int | None = None,
) -> Denoiser:
    """Create or load the denoiser to train.

    Args:
        config: names the preset or the pretrained denoiser.
        vae: the autoencoder that makes the latents.
        image_shape: `(C, H, W)`.
        num_classes: number of class labels; None without classes.
        text_width: of the text encoder's embeddings; None without captions.

    Returns:
        The denoiser in float32.

    Raises:
        UserError: if the pretrained denoiser cannot be loaded or does not fit the run, the image
            size does not fit the denoiser, or guidance has neither classes nor a guide.
    """
    is_conditional = num_classes is not None or text_width is not None
    if not is_conditional and config.guidance and config.guide is None:
        flag = next(iter(config.guidance))
        raise UserError(
            f"--{flag} needs images with classes and --conditional, or a --guide: remove it"
        )
    torch.manual_seed(config.seed)
    if config.pretrained_unet is None:
        own = config.architecture()
        unet = create_denoiser(config.preset, vae, image_shape, num_classes, text_width, **own)
    else:
        latent_shape = measure_compression(vae, image_shape).latent_shape
        unet = _load_pretrained(
            config.pretrained_unet, config, num_classes, latent_shape, text_width
        )
    return make_trainable(unet, config)


def make_trainable(unet: Denoiser, config: DenoiserTrainingConfig) -> Denoiser:
    """Return a denoiser in train mode, with gradients, and compiled if the settings say so."""
    unet.train().requires_grad_(True)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        unet.compile(dynamic=False)
    return unet


def _load_pretrained(
    name: str,
    config: DenoiserConfig,
    num_classes: int | None,
    latent_shape: tuple[int, ...],
    text_width: int | None,
) -> Denoiser:
    """Load a denoiser with this run's objective, classes, captions and latents."""
    unet, scheduler = load_denoiser(name)
    before = None if scheduler is None else get_objective(scheduler)
    if before not in (None, config.objective):
        raise UserError(
            f"--pretrained_unet {name} was trained with --objective {before}, and this run has "
            f"{config.objective}: pass --objective {before}"
        )
    embeddings = unet.config.num_class_embeds
    needed = None if num_classes is None else num_classes + 1  # the last is the null label's
    if unet.config.class_embed_type is not None or embeddings != needed:
        found = embeddings or unet.config.class_embed_type or "no"
        raise UserError(
            f"--pretrained_unet {name} has {found} class embeddings, and this run needs "
            f"{needed or 'none'} (its classes and the null label): name a denoiser of the same "
            "classes, or change --conditional"
        )
    if (own := prompt_width(unet)) != text_width:
        takes = "no prompts" if own is None else f"prompts of width {own}"
        needs = "none" if text_width is None else f"those of width {text_width}"
        raise UserError(
            f"--pretrained_unet {name} takes {takes}, and this run has {needs}: name a denoiser of "
            "the same --text_encoder"
        )
    channels, height, width = latent_shape
    inputs, outputs = unet.config.in_channels, unet.config.out_channels
    if (inputs, outputs) != (channels, channels):
        raise UserError(
            f"--pretrained_unet {name} takes {inputs} channels and gives {outputs}, and the "
            f"latents of --vae {config.vae} have {channels}: name the autoencoder of its training"
        )
    try:
        check_latents(unet, (1, *latent_shape))
    except ValueError as error:
        raise UserError(f"--pretrained_unet {name}: {error}; choose another --resolution") from None
    unet.register_to_config(sample_size=height if height == width else (height, width))
    return unet
