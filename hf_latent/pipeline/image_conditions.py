"""What a given image says about where denoising begins, and about what it leaves as it was."""

import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch.nn import functional

from .add_noise import mix_noise

Masks = torch.Tensor | Image.Image | list[Image.Image]


def skipped_steps(num_inference_steps: int, strength: float) -> int:
    """Return how many of the first steps image to image leaves out (SDEdit, Meng et al. 2022).

    Args:
        num_inference_steps: of the whole denoising.
        strength: the part of the steps that is made: 0 leaves the image as it is, 1 all of it to
            the noise.

    Raises:
        ValueError: if the strength is not from 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, not {strength}")
    # A product that is whole but for rounding counts as whole; the least strength makes one step.
    steps = max(int(num_inference_steps * strength + 1e-9), 1 if strength > 0 else 0)
    return num_inference_steps - steps


def read_mask(
    mask_image: Masks, image_size: tuple[int, int], latent_size: tuple[int, int]
) -> torch.Tensor:
    """Bring a mask to the latents' size; a latent pixel is free where any of its image pixels is.

    Args:
        mask_image: white (above a half) is made anew, black stays: pictures, or a tensor
            `(H, W)`, `(1, H, W)` or `(B, 1, H, W)` in [0, 1] or bool.
        image_size: height and width of the images.
        latent_size: height and width of their latents.

    Returns:
        `(B, 1, h, w)` bool, true where latents are made anew; B may be 1.

    Raises:
        ValueError: if the mask has another size than the image, or values outside [0, 1].
    """
    if isinstance(mask_image, torch.Tensor):
        if mask_image.ndim not in (2, 3, 4) or mask_image.shape[:-2][-1:] not in ((), (1,)):
            raise ValueError(
                f"a mask of the shape {tuple(mask_image.shape)} must be (H, W) or (B, 1, H, W)"
            )
        mask = mask_image.float().reshape(-1, 1, *mask_image.shape[-2:])
    else:
        pictures = mask_image if isinstance(mask_image, list) else [mask_image]
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            raise ValueError("a mask must be a PIL image, a list of such, or a tensor")
        masks = [_to_tensor(picture.convert("L")) for picture in pictures]
        if len({mask.shape for mask in masks}) > 1:
            raise ValueError("the masks have different sizes: each must have its image's")
        mask = torch.stack(masks)
    height, width = mask.shape[-2:]
    if (height, width) != image_size:
        raise ValueError(
            f"a mask of {height}x{width} does not fit an image of {image_size[0]}x{image_size[1]}: "
            "bring it to the image's size"
        )
    if mask.min() < 0 or mask.max() > 1:
        raise ValueError("mask values must be from 0 (stays) to 1 (is made anew)")
    return functional.adaptive_max_pool2d((mask > 0.5).float(), latent_size).bool()


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, picture.height, picture.width) / 255


def keep_unmasked(
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    kept: torch.Tensor,
    noise: torch.Tensor,
    mask: torch.Tensor,
    next_timestep: torch.Tensor | None,
) -> torch.Tensor:
    """Put what is to stay back in, at the noise level that the next step expects.

    RePaint (Lugmayr et al. 2022, equation 8), without its resampling.

    Args:
        scheduler: whose steps are made.
        latents: `(B, c, h, w)`, after a step.
        kept: `(B, c, h, w)`, the given image's, without noise.
        noise: `(B, c, h, w)`, what the denoising began with.
        mask: `(B or 1, 1, h, w)` bool, true where latents are made anew.
        next_timestep: 0-d; None after the last step, when `kept` is put in as it is.
    """
    if next_timestep is not None:
        kept = mix_noise(scheduler, kept, noise, next_timestep.expand(len(kept)))
    return torch.where(mask, latents, kept.to(latents))


def slerp(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Go from one tensor to another along an arc, which keeps the length (Shoemake 1985).

    Noise, and latents of unit variance, lie close to a sphere; a straight line would cut through
    it, and give the denoiser less noise than it was trained on.

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
