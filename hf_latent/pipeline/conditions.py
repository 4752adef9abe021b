"""The arguments of a generation: labels as conditions, images and masks to start from."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import PNDMScheduler, SchedulerMixin, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.nn import functional

from .add_noise import mix_noise
from .autoencoders import Autoencoder
from .decode import IMAGE_VALUES, from_values

# Named tensors, the batch first, that the denoiser is called with: `class_labels` `(B,)` int64.
# Empty for an unconditional denoiser.
Conditions: TypeAlias = dict[str, torch.Tensor]
Labels: TypeAlias = int | str | Sequence[int | str] | torch.Tensor | np.ndarray
Images: TypeAlias = torch.Tensor | np.ndarray | Image.Image | list[Image.Image]

# Arguments of other diffusers pipelines, and what takes their place in a call of this one.
INSTEAD = {
    **dict.fromkeys(("prompt", "labels", "class_names"), "class_labels"),
    **dict.fromkeys(("num_images_per_prompt", "batch_size", "num_samples"), "num_images"),
    **dict.fromkeys(("height", "width"), "latents or image of that size"),
    **dict.fromkeys(("timesteps", "sigmas", "num_steps", "steps"), "num_inference_steps"),
    **dict.fromkeys(("negative_prompt", "guidance", "cfg_scale"), "guidance_scale"),
    **dict.fromkeys(("eta", "sampler"), "pipeline.use_sampler(name)"),
    **dict.fromkeys(("callback", "callback_steps"), "callback_on_step_end"),
    "seed": "generator=torch.Generator().manual_seed(seed)",
    "init_image": "image",
    "mask": "mask_image",
}


def refuse_arguments(names: Iterable[str], callback_inputs: Iterable[str]) -> None:
    """Refuse arguments that a call does not have.

    Args:
        names: of the arguments; none is accepted.
        callback_inputs: of the tensors for a callback; only latents are accepted.

    Raises:
        ValueError: if there is one, naming what takes its place.
    """
    if unknown := set(callback_inputs) - {"latents"}:
        raise ValueError(f"callback_on_step_end_tensor_inputs has no {sorted(unknown)}")
    for name in names:
        instead = f": use {INSTEAD[name]}" if name in INSTEAD else ""
        raise ValueError(f"this pipeline takes no {name}{instead}")


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


def null_conditions(unet: UNet2DModel, count: int, device: torch.device | str) -> Conditions:
    """Return the conditions that a denoiser learns when conditions are dropped.

    Args:
        unet: the denoiser; its last class embedding is that of the null label.
        count: B, the number of images.
        device: of the tensors.

    Returns:
        `class_labels` `(B,)` int64, or nothing for an unconditional denoiser.
    """
    embeddings = unet.config.num_class_embeds
    if embeddings is None:
        return {}
    return {"class_labels": torch.full((count,), embeddings - 1, device=device)}


def class_conditions(
    label_ids: Sequence[int], count: int, device: torch.device | str
) -> Conditions:
    """Return the conditions `class_labels` `(B,)` int64.

    Args:
        label_ids: label numbers, used in turn.
        count: B, the number of images.
        device: of the tensor.
    """
    labels = list(islice(cycle(label_ids), count))
    return {"class_labels": torch.tensor(labels, device=device)}


def drop_conditions(conditions: Conditions, null: Conditions, dropped: torch.Tensor) -> Conditions:
    """Replace the conditions of some images by null conditions (Ho and Salimans 2022).

    Args:
        conditions: of B images.
        null: the null conditions of B images; names that they lack are dropped.
        dropped: `(B,)` bool.
    """
    return {
        name: torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), tensor, conditions[name])
        for name, tensor in null.items()
    }


def to_label_ids(
    class_labels: Labels, unet: UNet2DModel, id2label: Mapping[str | int, str] | None
) -> list[int]:
    """Translate labels or class names into label numbers, from 0 to the number of classes - 1.

    Args:
        class_labels: one or several. If a name is written like a number, the name wins. The case
            of letters does not matter, unless names differ by it alone.
        unet: the denoiser; it has one class embedding more than there are classes.
        id2label: the classes' names by label, or None.

    Raises:
        ValueError: for a label that the model does not have.
    """
    if unet.config.num_class_embeds is None:
        raise ValueError("this model has no classes: ask for num_images without class_labels")
    if isinstance(class_labels, torch.Tensor | np.ndarray):
        class_labels = class_labels.flatten().tolist()
    elif isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
        class_labels = [class_labels]
    numbers, names = range(unet.config.num_class_embeds - 1), id2label or {}
    label_of = dict(zip(map(str, numbers), numbers, strict=True))
    label_of |= zip(names.values(), map(int, names), strict=True)
    label_ids = []
    for label in class_labels:
        label_id: Any = label
        if isinstance(label, str):
            label_id = label_of.get(label, -1)
        if label_id == -1 and isinstance(label, str):
            alike = {x for name, x in label_of.items() if name.casefold() == label.casefold()}
            label_id = alike.pop() if len(alike) == 1 else -1
        if label_id not in numbers:
            known = f", or one of {', '.join(names.values())}" if names else ""
            raise ValueError(
                f"class label {label} is not in the model: use a number from 0 to "
                f"{numbers[-1]}{known}"
            )
        label_ids.append(int(label_id))
    return label_ids


def count_images(
    num_images: int | None, given: Mapping[str, Sequence | torch.Tensor | None]
) -> int:
    """Return the number of images to generate.

    Args:
        num_images: None: as many as are given, or 1.
        given: the given arguments by name: `class_labels`, used in turn; `image` and `mask`, one
            for all or one an image; `latents` and `generators`, one an image.

    Raises:
        ValueError: if the number is 0, or the arguments are of different numbers.
    """
    counts = {}
    for name, argument in given.items():
        if argument is not None:
            counts[name] = len(argument)
    if num_images is None:
        num_images = counts.get("latents", max(counts.values(), default=1))
    if num_images < 1 or 0 in counts.values():
        raise ValueError("nothing to generate: num_images must be at least 1")
    for name in ("latents", "generators"):
        if counts.get(name, num_images) != num_images:
            raise ValueError(f"{counts[name]} {name} for {num_images} images")
    for name in ("image", "mask"):
        if counts.get(name, 1) not in (1, num_images):
            raise ValueError(f"{counts[name]} {name}s were given for {num_images} images")
    return num_images


def check_output_type(
    output_type: str, known: Sequence[str] = ("pil", "np", "pt", "latent")
) -> None:
    """Raise a ValueError if an output type is not known."""
    if output_type not in known:
        names = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ValueError(f"output_type must be {names}, not {output_type!r}")


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
