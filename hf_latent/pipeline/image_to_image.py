"""Image to image, inpainting and interpolation: what a denoising starts from, and what it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline, PNDMScheduler, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch.nn import functional

from .add_noise import mix_noise
from .autoencoders import Autoencoder, downsampling_factor
from .decode import IMAGE_VALUES, from_values
from .denoise import check_latents

Images: TypeAlias = torch.Tensor | np.ndarray | Image.Image | list[Image.Image]


@dataclass(frozen=True)
class Start:
    """What a call starts from and keeps, besides noise.

    Attributes:
        image: `(B or 1, C, H, W)` in [-1, 1], whose pixels stay outside the mask; None: no pixels.
        image_latents: `(B or 1, c, h, w)`, the images' latents; None: noise only.
        mask: `(B or 1, 1, H, W)`, see `read_mask`; None: everything is regenerated.
        strength: the part of the steps that is made.
        f: the downsampling factor, of a mask.
    """

    image: torch.Tensor | None
    image_latents: torch.Tensor | None
    mask: torch.Tensor | None
    strength: float
    f: int

    @classmethod
    def read(
        cls,
        pipeline: DiffusionPipeline,
        image: Images | None,
        image_latents: torch.Tensor | None,
        mask_image: Images | None,
        strength: float | None,
    ) -> "Start":
        """Read the arguments of a call; None: as of the call.

        Raises:
            ValueError: if they do not go together, or do not fit the model.
        """
        pixels = None
        if image is not None:
            if image_latents is not None:
                raise ValueError("pass either image or image_latents, not both")
            pixels = read_images(pipeline.image_processor, image, pipeline.require("vae"))
            image_latents = pipeline.encode_images(pixels, sample_posterior=False)
        if image_latents is not None:
            check_latents(pipeline.unet, image_latents.shape)
        elif not (strength is None and mask_image is None):
            raise ValueError("strength and mask_image need an image or image_latents")
        mask, f = None, 1
        if mask_image is not None and image_latents is not None:
            f = downsampling_factor(pipeline.require("vae"))
            mask = read_mask(mask_image, *(f * side for side in image_latents.shape[2:]))
        strength = (0.8 if mask is None else 1.0) if strength is None else strength
        return cls(pixels, image_latents, mask, strength, f)

    def shrunk_mask(self) -> torch.Tensor | None:
        """Return the mask of latents, see `shrink_mask`."""
        return None if self.mask is None else shrink_mask(self.mask, self.f)

    def paste(self, images: torch.Tensor) -> torch.Tensor:
        """Paste what the mask keeps into decoded images, see `paste_kept`."""
        if self.mask is None or self.image is None:
            return images
        return paste_kept(images, self.image, self.mask, self.f)


def check_start(
    latents: torch.Tensor, image_latents: torch.Tensor | None, mask: torch.Tensor | None
) -> None:
    """Check what a denoising starts from.

    Raises:
        ValueError: if the latents of images have another shape than the noise, or are missing.
    """
    if image_latents is None and mask is not None:
        raise ValueError("a mask needs image_latents, which are kept outside the mask")
    if image_latents is not None and image_latents.shape != latents.shape:
        raise ValueError(
            f"image_latents have the shape {tuple(image_latents.shape)} and latents "
            f"{tuple(latents.shape)}: both must be equal"
        )


def check_interpolation(
    first: int | Images,
    second: int | Images,
    num_images: int,
    strength: float | None,
    settings: Mapping[str, Any],
) -> bool:
    """Check the arguments of an interpolation, and return whether it is between two seeds.

    Raises:
        ValueError: if they do not go together.
    """
    if starts := {"latents", "image", "image_latents", "mask_image"} & settings.keys():
        raise ValueError(f"interpolate takes no {', '.join(sorted(starts))}")
    between_seeds = isinstance(first, int | np.integer)
    if num_images < 2 or isinstance(second, int | np.integer) != between_seeds:
        raise ValueError("interpolate between two seeds or two images, in 2 or more images")
    if between_seeds and strength is not None:
        raise ValueError("strength is for images: leave it unset between seeds")
    return between_seeds


def read_images(
    image_processor: VaeImageProcessor, images: Images, vae: Autoencoder
) -> torch.Tensor:
    """Convert PIL images of one size and mode, or arrays, to `(B, C, H, W)` in [-1, 1].

    Args:
        image_processor: the pipeline's; it does not resize.
        images: one or several, L, RGB or RGBA; for an autoencoder with a value range also an
            array `(B, H, W, C)` of the data's own values; a tensor is returned unchanged.
        vae: the autoencoder.

    Raises:
        ValueError: for anything else, and for a tensor that seems to be in another range.
    """
    if isinstance(images, torch.Tensor):
        if images.is_floating_point() and images.numel():
            lowest, highest = (x.item() for x in images.aminmax())
            # `output_type="pt"` gives [0, 1]. A single value says nothing about the range.
            if not -1.001 <= lowest <= highest <= 1.001 or 0 <= lowest < highest:
                raise ValueError(
                    f"the images have values from {lowest:.3g} to {highest:.3g}, and must be in "
                    "[-1, 1]: pass x * 2 - 1 for x in [0, 1], x / 127.5 - 1 for x in [0, 255], or "
                    "PIL images"
                )
        return images
    if isinstance(images, np.ndarray) and images.ndim == 4 and IMAGE_VALUES in vae.config:
        values = image_processor.numpy_to_pt(images.astype(np.float32))  # (B, C, H, W)
        return from_values(vae, values)
    pil_images: list[Any] = images if isinstance(images, list) else [images]
    if not all(isinstance(image, Image.Image) for image in pil_images):
        raise ValueError("images must be PIL images, or a tensor (B, C, H, W) in [-1, 1]")
    if modes := {image.mode for image in pil_images} - {"L", "RGB", "RGBA"}:
        raise ValueError(f"convert images of mode {modes} to L, RGB or RGBA first")
    if len({(image.mode, image.size) for image in pil_images}) > 1:
        raise ValueError("the images have different sizes or modes: resize or convert them first")
    return image_processor.preprocess(pil_images)


def skipped_steps(scheduler: SchedulerMixin, num_inference_steps: int, strength: float) -> int:
    """Return how many timesteps image to image skips at the start (SDEdit, Meng et al. 2022).

    Args:
        scheduler: one of order n has n timesteps a step.
        num_inference_steps: number of steps from pure noise.
        strength: the part of the steps that is made: 0 keeps the image, 1 starts from noise.

    Raises:
        ValueError: if the strength is not from 0 to 1, or the scheduler can only start from noise.
    """
    if isinstance(scheduler, PNDMScheduler):  # its first steps are several in one
        raise ValueError("PNDMScheduler can start from noise only: use another sampler")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, not {strength}")
    # Add 1e-9 so that rounding never loses a step; any strength above 0 makes at least one.
    steps = max(int(num_inference_steps * strength + 1e-9), 1 if strength > 0 else 0)
    return (num_inference_steps - steps) * getattr(scheduler, "order", 1)


def read_mask(mask_image: Images, height: int, width: int) -> torch.Tensor:
    """Convert a mask to a tensor.

    Args:
        mask_image: white (above 0.5) is regenerated, black is kept: PIL images, or a tensor
            `(H, W)`, `(1, H, W)` or `(B, 1, H, W)` in [0, 1] or bool.
        height: of the images.
        width: of the images.

    Returns:
        `(B, 1, H, W)` float, 1 for pixels that are regenerated, otherwise 0; B may be 1.

    Raises:
        ValueError: if the mask's size is not the image's, or values are outside [0, 1].
    """
    if isinstance(mask_image, torch.Tensor):
        if mask_image.ndim not in (2, 3, 4) or mask_image.shape[:-2][-1:] not in ((), (1,)):
            raise ValueError(
                f"a mask of the shape {tuple(mask_image.shape)} must be (H, W) or (B, 1, H, W)"
            )
        mask = mask_image.float()
    else:
        pil_images: list[Any] = mask_image if isinstance(mask_image, list) else [mask_image]
        if not all(isinstance(image, Image.Image) for image in pil_images):
            raise ValueError("a mask must be a PIL image, a list of PIL images, or a tensor")
        if len({image.size for image in pil_images}) > 1:
            raise ValueError("the masks have different sizes: each must have its image's size")
        pixels = [np.asarray(image.convert("L")) for image in pil_images]
        mask = torch.tensor(np.stack(pixels)) / 255
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] != (height, width):
        raise ValueError(
            f"a mask of {mask.shape[-2]}x{mask.shape[-1]} does not fit an image of "
            f"{height}x{width}: resize it to the image's size"
        )
    if mask.min() < 0 or mask.max() > 1:
        raise ValueError("mask values must be from 0 (kept) to 1 (regenerated)")
    return (mask > 0.5).float()


def shrink_mask(mask: torch.Tensor, f: int) -> torch.Tensor:
    """Return which latents are regenerated: those of which any pixel is.

    Args:
        mask: `(B, 1, H, W)`, of `read_mask`.
        f: the downsampling factor.

    Returns:
        `(B, 1, H/f, W/f)` bool.
    """
    return functional.max_pool2d(mask, f).bool()


def paste_kept(
    images: torch.Tensor, originals: torch.Tensor, mask: torch.Tensor, f: int
) -> torch.Tensor:
    """Paste the original pixels outside the mask, which the autoencoder's round trip has changed.

    A band of about f pixels outside the mask fades from the originals to the decoded images, so
    that there is no seam: the mask is grown by r = f / 2 pixels and averaged over 2r + 1.

    Args:
        images: `(B, C, H, W)` in [-1, 1], decoded.
        originals: `(B or 1, C, H, W)` in [-1, 1].
        mask: `(B or 1, 1, H, W)`, of `read_mask`.
        f: the downsampling factor.

    Returns:
        `(B, C, H, W)`: decoded pixels inside the mask, the very originals beyond the band.
    """
    r = f // 2
    grown = functional.max_pool2d(mask.to(images), 2 * r + 1, stride=1, padding=r)
    share = functional.avg_pool2d(grown, 2 * r + 1, stride=1, padding=r, count_include_pad=False)
    return torch.lerp(originals.to(images).expand(images.shape), images, share)


def keep_unmasked(
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    kept: torch.Tensor,
    noise: torch.Tensor,
    mask: torch.Tensor,
    next_timestep: torch.Tensor | None,
) -> torch.Tensor:
    """Replace the latents outside the mask by the given image's, at the next step's noise level.

    RePaint (Lugmayr et al. 2022, equation 8), without its resampling.

    Args:
        scheduler: of the denoising.
        latents: `(B, c, h, w)`, after a step.
        kept: `(B, c, h, w)`, the given image's latents, without noise.
        noise: `(B, c, h, w)`, the noise that the denoising started from.
        mask: `(B or 1, 1, h, w)` bool, true for latents that are regenerated.
        next_timestep: 0-d; None after the last step: `kept` is used without noise.
    """
    if next_timestep is not None:
        kept = mix_noise(scheduler, kept, noise, next_timestep.expand(len(kept)))
    return torch.where(mask.to(latents.device), latents, kept.to(latents))


def interpolated_latents(
    pipeline: Any, first: int | Images, second: int | Images, num_images: int
) -> torch.Tensor:
    """Return the latents `(num_images, c, h, w)` from those of one seed, or image, to another's.

    Raises:
        ValueError: if the images are several, or not of the same size.
    """
    shape = (1, pipeline.require("unet").config.in_channels, *pipeline.latent_size)
    ends = [
        randn_tensor(shape, torch.Generator().manual_seed(int(end)), dtype=pipeline.unet.dtype)
        if isinstance(end, int | np.integer)
        else pipeline.encode_images(end, sample_posterior=False)
        for end in (first, second)
    ]
    if ends[0].shape != ends[1].shape or len(ends[0]) != 1:
        raise ValueError("interpolate between one image and another of the same size")
    weights = torch.linspace(0, 1, num_images).tolist()
    return torch.cat([slerp(ends[0], ends[1], x) for x in weights])


def slerp(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Interpolate along an arc, which keeps the length (Shoemake 1985).

    Noise, and latents of unit variance, lie close to a sphere. A straight line cuts through the
    sphere: the denoiser would get less noise than it was trained on.

    Args:
        first: any shape, float.
        second: the same shape.
        weight: 0 gives the first, 1 the second.
    """
    cosine = functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < 1e-4:  # nearly parallel: the arc is a line
        return torch.lerp(first, second, weight)
    parts = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    return (parts[0] * first + parts[1] * second) / angle.sin()
