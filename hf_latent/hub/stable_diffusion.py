"""The parts of a model with prompts, as the stock `StableDiffusionPipeline` uses them."""

from typing import TYPE_CHECKING

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    SchedulerMixin,
    UNet2DConditionModel,
)

from hf_latent.errors import UserError
from hf_latent.models.load import Autoencoder, quiet_libraries
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import downsampling_factor

if TYPE_CHECKING:  # its import says that torchvision is missing, which nothing here needs
    from diffusers import StableDiffusionPipeline

# Autoencoders whose `decode` takes what the pipeline passes.
AUTOENCODERS = (AutoencoderKL, AsymmetricAutoencoderKL, AutoencoderTiny)
SIZE_MULTIPLE = 8  # of its images, whatever the autoencoder


def to_stable_diffusion(
    pipeline: LatentDiffusionPipeline,
    vae: Autoencoder,
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
) -> "StableDiffusionPipeline":
    """Create a `StableDiffusionPipeline` of a model with prompts.

    It passes no class labels, so those of a model with classes are left out: it draws the images of
    their null label.

    Args:
        pipeline: has the text encoder and the tokenizer; is not changed.
        vae: of the export.
        unet: of the export; is changed.
        scheduler: of the export; is not changed.

    Raises:
        UserError: if it cannot draw this model's images.
    """
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise UserError(
            "the model was saved without its text encoder, which StableDiffusionPipeline needs: "
            "save the pipeline with text_encoder and tokenizer"
        )
    if not isinstance(vae, AUTOENCODERS):
        raise UserError(
            f"StableDiffusionPipeline cannot decode with an autoencoder of the class "
            f"{type(vae).__name__}: share the model itself"
        )
    height, width = (downsampling_factor(vae) * x for x in pipeline.latent_size)
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise UserError(
            f"the model's images are {height}x{width}, and StableDiffusionPipeline draws multiples "
            f"of {SIZE_MULTIPLE} only: share the model itself"
        )
    _fold_null_label(unet)
    scheduler = _keep_steps(scheduler)
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _fold_null_label(unet: UNet2DConditionModel) -> None:
    """Add the null label's embedding, if any, to the time embedding's last bias, in place.

    The denoiser adds both embeddings, so it then draws the images of the null label without labels.
    """
    if unet.class_embedding is None:
        return
    with torch.no_grad():
        unet.time_embedding.linear_2.bias += unet.class_embedding.weight[-1]
    unet.class_embedding = None
    unet.register_to_config(num_class_embeds=None)


def _keep_steps(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Copy a scheduler, with the settings that the pipeline gives to every scheduler.

    Raises:
        UserError: if they change the steps.
    """
    config, changed = scheduler.config, []
    if config.timestep_spacing == "leading" and config.steps_offset != 1:
        changed.append("steps_offset")
    if config.get("clip_sample"):
        changed.append("clip_sample")
    if changed:
        raise UserError(
            f"this model's scheduler has {changed[0]}={config[changed[0]]}, which "
            "StableDiffusionPipeline changes: save the model with another sampler "
            "(pipeline.use_sampler), or share the model itself"
        )
    return type(scheduler).from_config(config, steps_offset=1)
