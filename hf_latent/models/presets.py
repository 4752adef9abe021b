"""Presets of autoencoders, denoisers and schedulers: configurations of plain diffusers classes."""

from dataclasses import dataclass
from math import gcd, prod
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_latent.errors import UserError
from hf_latent.pipeline.autoencoders import (
    Autoencoder,
    downsampling_factor,
    find_kind,
    image_channels,
    latent_channels,
)
from hf_latent.pipeline.conditions import Denoiser
from hf_latent.pipeline.denoise import size_multiple
from hf_latent.pipeline.encode import check_images

# The configuration entry of an autoencoder for images that are not square: their height and width.
IMAGE_SIZE = "_image_size"  # private, so diffusers ignores and keeps it
Preset = Literal["tiny", "small", "base", "ldm-f4", "ldm-f8", "base-fast"]
Objective = Literal["flow", "epsilon", "v_prediction", "sample"]
# Steps that a new model of flow makes by default; docs/guides/sampling.md compares.
FLOW_INFERENCE_STEPS = 8

# ldm-f4, ldm-f8: the KL autoencoders of Rombach et al. 2022, table 8 (kl-f4 with c=3, kl-f8 with
# c=4): 128 channels, multipliers 1-2-4 and 1-2-4-4, two residual blocks a level.
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "block_out_channels": (8, 16, 32),
        "layers_per_block": 1,
        "latent_channels": 8,
        "mid_block_add_attention": False,
    },
    "small": {"block_out_channels": (32, 64, 128), "layers_per_block": 2, "latent_channels": 8},
    "base": {"block_out_channels": (64, 128, 256, 256), "layers_per_block": 2},
    "ldm-f4": {
        "block_out_channels": (128, 256, 512),
        "layers_per_block": 2,
        "latent_channels": 3,
        "norm_num_groups": 32,
    },
    "ldm-f8": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    # Decoding 256 pixels costs less than ten steps of a small denoiser (see `hf-latent bench
    # space`), those of `base` more than sixty.
    "base-fast": {
        "block_out_channels": (16, 32, 64, 128),
        "layers_per_block": 1,
    },
}
LATENT_CHANNELS = 4  # of presets that name none, and the most for grey images
# A group of one channel would lose the image's brightness and colour: a norm takes its mean away.
CHANNELS_PER_GROUP, MOST_GROUPS = 8, 32

# ldm-f4: LDM-4 of CelebA-HQ and FFHQ; ldm-f8: LDM-8 of LSUN-Churches (Rombach et al. 2022,
# table 12). LDM-8 fixes the number of attention heads (8), UNet2DModel their width: 24 is the
# width of LDM-8's heads at its first level.
# "attention": for each level, whether it has self-attention.
DENOISERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "attention": (False, True),
        "attention_head_dim": 32,
        "norm_num_groups": 16,
    },
    "small": {
        "block_out_channels": (128, 256, 256),
        "layers_per_block": 2,
        "attention": (False, True, True),
        "attention_head_dim": 32,
    },
    "base": {
        "block_out_channels": (192, 384, 576),
        "layers_per_block": 2,
        "attention": (False, True, True),
        "attention_head_dim": 64,
    },
    "ldm-f4": {
        "block_out_channels": (224, 448, 672, 896),
        "layers_per_block": 2,
        "attention": (False, True, True, True),
        "attention_head_dim": 32,
    },
    "ldm-f8": {
        "block_out_channels": (192, 384, 384, 768, 768),
        "layers_per_block": 2,
        "attention": (True, True, True, True, False),
        "attention_head_dim": 24,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
}
DENOISERS["base-fast"] = DENOISERS["base"]  # the latents have the same shape


@dataclass(frozen=True)
class Compression:
    """Shapes of an image and of its latents.

    Attributes:
        image_shape: `(C, H, W)`.
        latent_shape: `(c, H/f, W/f)`.
    """

    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]

    @property
    def image_values(self) -> int:
        """The number of values of an image."""
        return prod(self.image_shape)

    @property
    def latent_values(self) -> int:
        """The number of values of the image's latents."""
        return prod(self.latent_shape)

    @property
    def ratio(self) -> float:
        """Image values per latent value."""
        return self.image_values / self.latent_values

    def __str__(self) -> str:
        """Return one line for a person."""
        return (
            f"{self.image_values:,} values in {self.image_shape}, "
            f"{self.latent_values:,} latent values {self.latent_shape}, "
            f"{self.ratio:g} times fewer"
        )


def image_size(vae: Autoencoder) -> tuple[int, int] | None:
    """Return the height and width of the images that an autoencoder is for, if they are known."""
    size = find_kind(vae).image_size(vae.config)
    size = size or vae.config.get(IMAGE_SIZE) or vae.config.get("sample_size")
    return size and ((size, size) if isinstance(size, int) else tuple(size))


def measure_compression(vae: Autoencoder, image_shape: tuple[int, int, int]) -> Compression:
    """Return the shapes of an image `(C, H, W)` and of its latents.

    Raises:
        UserError: if the image does not fit the autoencoder.
    """
    takes = image_channels(vae)
    if image_shape[0] != takes:
        raise UserError(
            f"the images have {image_shape[0]} channels and the autoencoder takes {takes}: pass "
            f"--channels {takes} to convert the images, or name another autoencoder"
        )
    try:
        check_images(vae, torch.empty((1, *image_shape), device="meta"))
    except ValueError as error:
        raise UserError(str(error)) from error
    f, (_, height, width) = downsampling_factor(vae), image_shape
    return Compression(image_shape, (latent_channels(vae), height // f, width // f))


def create_autoencoder(
    preset: Preset, image_channels: int, sample_size: int | tuple[int, int], **changes: Any
) -> AutoencoderKL:
    """Create an untrained AutoencoderKL from a preset.

    Args:
        preset: a key of `AUTOENCODERS`.
        image_channels: C of the images.
        sample_size: the images' size in pixels, one number or height and width. Diffusers' tiling
            takes one number, so of two the configuration has the larger one, and both apart.
        changes: configuration entries that replace the preset's. The groups of norms follow from
            the widths, unless the preset or this names `norm_num_groups`. Grey images have at most
            4 latent channels, unless this names more.

    Returns:
        The autoencoder, with `scaling_factor = 1`: the scale is folded in after training.
    """
    config = {"latent_channels": LATENT_CHANNELS} | AUTOENCODERS[preset]
    if image_channels == 1:
        config["latent_channels"] = min(config["latent_channels"], LATENT_CHANNELS)
    config |= changes
    levels, divisor = len(config["block_out_channels"]), gcd(*config["block_out_channels"])
    most = min(max(divisor // CHANNELS_PER_GROUP, 1), MOST_GROUPS)
    groups = max(x for x in range(1, most + 1) if divisor % x == 0)
    height, width = (sample_size,) * 2 if isinstance(sample_size, int) else sample_size
    vae = AutoencoderKL(
        **{"norm_num_groups": groups} | config,
        in_channels=image_channels,
        out_channels=image_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=max(height, width),
        scaling_factor=1.0,
        force_upcast=False,
    )
    if height != width:
        vae.register_to_config(**{IMAGE_SIZE: [height, width]})
    return vae


def create_denoiser(
    preset: Preset,
    vae: Autoencoder,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    text_width: int | None = None,
    **changes: Any,
) -> Denoiser:
    """Create an untrained denoiser whose channels and size are derived from the autoencoder.

    Args:
        preset: a key of `DENOISERS`.
        vae: the autoencoder whose latents it will denoise.
        image_shape: `(C, H, W)` of the images.
        num_classes: N classes give N + 1 embeddings, the last the null label's; None: no classes.
        text_width: D of the text encoder's `(B, T, D)`; None: no prompts.
        changes: configuration entries that replace the preset's.

    Returns:
        A UNet2DModel, or for prompts a UNet2DConditionModel, which has attention to the prompt
        wherever the preset has self-attention.

    Raises:
        UserError: if the images' size does not fit the denoiser, naming the multiples of the
            autoencoder and of the denoiser; if the changed levels do not make a denoiser; or if the
            preset has no levels for prompts.
    """
    config = DENOISERS[preset] | changes
    _check_levels(config)
    channels, height, width = measure_compression(vae, image_shape).latent_shape
    shape: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": height if height == width else (height, width),
        "num_class_embeds": None if num_classes is None else num_classes + 1,
    }
    if text_width is None:
        unet: Denoiser = _create_unet(config, shape)
    else:
        unet = _create_text_unet(preset, config, shape, text_width)
    f, multiple = downsampling_factor(vae), size_multiple(unet)
    if height % multiple or width % multiple:
        raise UserError(
            f"images of {image_shape[1]}x{image_shape[2]} do not fit the denoiser preset "
            f"{preset!r}: height and width must be multiples of {f} to be encoded and of "
            f"{f * multiple} to be denoised; choose another --resolution"
        )
    return unet


def _create_unet(config: dict[str, Any], shape: dict[str, Any]) -> UNet2DModel:
    config = dict(config)
    attention = config.pop("attention")
    down, up = "DownBlock2D", "UpBlock2D"
    if config.get("downsample_type") == "resnet":
        down, up = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    return UNet2DModel(
        **config,
        **shape,
        down_block_types=tuple("AttnDownBlock2D" if level else down for level in attention),
        up_block_types=tuple("AttnUpBlock2D" if level else up for level in reversed(attention)),
    )


def _create_text_unet(
    preset: str, config: dict[str, Any], shape: dict[str, Any], text_width: int
) -> UNet2DConditionModel:
    """Create a denoiser with attention to T tokens, projected to its greatest width."""
    if config.get("downsample_type") == "resnet":
        raise UserError(f"--preset {preset} is not for captions: choose tiny, small or base")
    config, down, up = dict(config), "DownBlock2D", "UpBlock2D"
    attention, head = config.pop("attention"), config.pop("attention_head_dim")
    widths = config["block_out_channels"]
    projected = {} if text_width == max(widths) else {"encoder_hid_dim": text_width}
    return UNet2DConditionModel(
        **config,
        **shape,
        down_block_types=tuple("CrossAttnDownBlock2D" if x else down for x in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if x else up for x in reversed(attention)),
        # This class takes the number of heads under the name of their width.
        attention_head_dim=tuple(width // head or 1 for width in widths),
        cross_attention_dim=max(widths),
        **projected,
        encoder_hid_dim_type="text_proj" if projected else None,
    )


def _check_levels(config: dict[str, Any]) -> None:
    """Raise UserError unless norms and attention heads fit the levels of a denoiser."""
    widths, attention = config["block_out_channels"], config["attention"]
    if not widths or len(widths) != len(attention):
        raise UserError(
            f"the denoiser has {len(widths)} --block_out_channels and {len(attention)} values of "
            "--attention: pass both, one value of each a level"
        )
    groups = config.get("norm_num_groups", 32)  # UNet2DModel's own default
    head = config["attention_head_dim"]
    for width, attends in zip(widths, attention, strict=True):
        if width % groups or (attends and width < head):
            raise UserError(
                f"--block_out_channels {list(widths)} does not fit the denoiser: each must be a "
                f"multiple of {groups}, and at least {head} with --attention"
            )


def create_scheduler(objective: Objective, zero_terminal_snr: bool = False) -> SchedulerMixin:
    """Create the stock scheduler of an objective.

    Args:
        objective: "flow" (rectified flow), or the prediction type of a variance-preserving
            diffusion with LDM's scaled-linear schedule.
        zero_terminal_snr: rescale that schedule to end with noise only, with which sampling starts
            (Lin et al. 2024, algorithm 1).

    Returns:
        A UniPCMultistepScheduler for flow (Zhao et al. 2023), else a DDIMScheduler. It does not
        clip samples, because latents are not bounded; its last step ends with the clean latents.

    Raises:
        ValueError: for zero_terminal_snr with flow or epsilon.
    """
    if zero_terminal_snr and objective == "flow":
        raise ValueError("zero_terminal_snr is not for flow, which always ends with noise only")
    if zero_terminal_snr and objective == "epsilon":
        # The input would be the noise itself, and the first sampling step would divide by 0.
        raise ValueError("zero_terminal_snr is not for epsilon: use v_prediction or sample")
    if objective == "flow":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        prediction_type=objective,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def create_student_scheduler(scheduler: SchedulerMixin) -> DPMSolverMultistepScheduler:
    """Create the scheduler of a student that is distilled from a flow model.

    The first-order step of DPM-Solver++ (Lu et al. 2022) is Euler's on a flow. Its n
    steps begin at equal distances, from 0.999 down, also in stock diffusers;
    FlowMatchEulerDiscreteScheduler's last step there begins at 1/1000 and changes nothing.

    Args:
        scheduler: of the teacher's training, a flow's with any constant shift.
    """
    config = scheduler.config
    return DPMSolverMultistepScheduler(
        num_train_timesteps=config.num_train_timesteps,
        solver_order=1,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=config.get("shift", config.get("flow_shift", 1.0)),
    )
