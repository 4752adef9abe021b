"""Every kind of autoencoder at tiny size, for RGB images of 32x32, and what stock pipelines do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import Flux2Pipeline, ModelMixin

from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.small import NARROW_DENOISER

THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "sample_size": 32,
}
MEAN, STD = [0.1, -0.2, 0.3, -0.4], [1.5, 0.5, 2.0, 3.0]
RESIDUAL = ("ResBlock", "ResBlock", "EfficientViTBlock")
# Name: class, configuration.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "stable-diffusion": ("AutoencoderKL", THREE_LEVELS | {"scaling_factor": 0.18215}),
    "sdxl": (
        "AutoencoderKL",
        THREE_LEVELS | {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
    ),
    "sd3": (
        "AutoencoderKL",
        THREE_LEVELS
        | {"scaling_factor": 1.5305, "shift_factor": 0.0609, "latent_channels": 16}
        | {"use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "asymmetric": (
        "AsymmetricAutoencoderKL",
        {f"{way}_block_out_channels": (8, 8, 8) for way in ("down", "up")}
        | {k: v for k, v in THREE_LEVELS.items() if k != "block_out_channels"},
    ),
    "flux2": (
        "AutoencoderKLFlux2",
        {k: v[:2] if isinstance(v, tuple) else v for k, v in THREE_LEVELS.items()}
        | {"latent_channels": 2, "layers_per_block": 1},
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanImage",
        {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1}
        | {"block_out_channels": (32, 32, 32), "spatial_compression_ratio": 4}
        | {"sample_size": 32, "scaling_factor": 0.75289},
    ),
    "tiny": (
        "AutoencoderTiny",
        {f"{part}_block_out_channels": (8, 8, 8) for part in ("encoder", "decoder")}
        | {f"num_{part}_blocks": (1, 1, 1) for part in ("encoder", "decoder")}
        | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    ),
    "dc": (
        "AutoencoderDC",
        {"latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.41407}
        | {f"{part}_block_types": RESIDUAL for part in ("encoder", "decoder")}
        | {f"{part}_block_out_channels": (8, 8, 16) for part in ("encoder", "decoder")}
        | {f"{part}_layers_per_block": (1, 1, 1) for part in ("encoder", "decoder")}
        | {f"{part}_qkv_multiscales": ((), (), (5,)) for part in ("encoder", "decoder")},
    ),
    "vq": (
        "VQModel",
        THREE_LEVELS | {"num_vq_embeddings": 16, "vq_embed_dim": 4, "latent_channels": 3},
    ),
    "rae": (
        "AutoencoderRAE",
        {"encoder_hidden_size": 64, "encoder_num_hidden_layers": 1, "scaling_factor": 0.5}
        # As published: images of 4 x 8 pixels are resized to 4 x 7.
        | {"encoder_patch_size": 7, "encoder_input_size": 28, "patch_size": 8}
        | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
        | {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
        | {
            f"latents_{name}": [[[x]] for x in 16 * y] for name, y in (("mean", MEAN), ("std", STD))
        },
    ),
}


def make_kind(name: str) -> ModelMixin:
    """An untrained autoencoder, whose latents are far from zero mean and unit variance."""
    class_name, config = CONFIGS[name]
    torch.manual_seed(0)
    vae = getattr(diffusers, class_name)(**config).eval()
    with torch.no_grad():
        if name == "flux2":
            vae.bn.running_mean.uniform_(-1, 1)
            vae.bn.running_var.uniform_(0.2, 4)
        if name == "vq":
            vae.quantize.embedding.weight.uniform_(-1, 1)
    return vae


def make_kind_pipeline(name: str) -> LatentDiffusionPipeline:
    vae = make_kind(name)
    torch.manual_seed(1)
    unet = create_denoiser("tiny", vae, (3, 32, 32), None, **NARROW_DENOISER).eval()
    pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _flux2_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    pipeline = SimpleNamespace(vae=vae, _patchify_latents=Flux2Pipeline._patchify_latents)
    return Flux2Pipeline._encode_vae_image(pipeline, images, None)


def _flux2_images(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    # Flux2Pipeline.__call__, after the last step.
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return vae.decode(Flux2Pipeline._unpatchify_latents(latents * std + mean)).sample


def _column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


# Name: how the stock pipeline of that family encodes images in [-1, 1] (to the posterior's mean),
# and how it decodes.
Stock = tuple[
    Callable[[Any, torch.Tensor], torch.Tensor], Callable[[Any, torch.Tensor], torch.Tensor]
]
SCALED: Stock = (  # StableDiffusionImg2ImgPipeline
    lambda vae, x: vae.config.scaling_factor * vae.encode(x).latent_dist.mode(),
    lambda vae, z: vae.decode(z / vae.config.scaling_factor).sample,
)
STOCK: dict[str, Stock] = {
    "stable-diffusion": SCALED,
    "sdxl": (  # StableDiffusionXLImg2ImgPipeline
        lambda vae, x: (
            (vae.encode(x).latent_dist.mode() - _column(MEAN))
            * vae.config.scaling_factor
            / _column(STD)
        ),
        lambda vae, z: (
            vae.decode(z * _column(STD) / vae.config.scaling_factor + _column(MEAN)).sample
        ),
    ),
    "sd3": (  # StableDiffusion3Img2ImgPipeline, FluxImg2ImgPipeline
        lambda vae, x: (
            (vae.encode(x).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        ),
        lambda vae, z: vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample,
    ),
    "asymmetric": SCALED,
    "flux2": (_flux2_latents, _flux2_images),
    "hunyuan": SCALED,  # HunyuanImagePipeline decodes so; none encodes
    "tiny": (  # FluxImg2ImgPipeline with taef1
        lambda vae, x: (
            (vae.encode(x).latents - vae.config.shift_factor) * vae.config.scaling_factor
        ),
        lambda vae, z: vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample,
    ),
    "dc": (  # SanaSprintImg2ImgPipeline, with sigma_data = 1
        lambda vae, x: vae.encode(x).latent * vae.config.scaling_factor,
        lambda vae, z: vae.decode(z / vae.config.scaling_factor).sample,
    ),
    "vq": (  # LDMPipeline decodes so; none encodes
        lambda vae, x: vae.encode(x).latents * vae.config.scaling_factor,
        lambda vae, z: vae.decode(z / vae.config.scaling_factor).sample,
    ),
    "rae": (  # there is no pipeline: its documentation, with images in [0, 1]
        lambda vae, x: vae.encode((x + 1) / 2).latent,
        lambda vae, z: vae.decode(z).sample * 2 - 1,
    ),
}
