"""The conditions of a generation: classes and prompts; and the arguments of a call."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

# UNet2DConditionModel is for prompts.
Denoiser: TypeAlias = UNet2DModel | UNet2DConditionModel
# Named tensors, the batch first, that the denoiser is called with: `class_labels` `(B,)` int64, and
# `encoder_hidden_states` `(B, T, D)` float. Empty for an unconditional denoiser.
Conditions: TypeAlias = dict[str, torch.Tensor]
Labels: TypeAlias = int | str | Sequence[int | str] | torch.Tensor | np.ndarray

# Arguments of other diffusers pipelines, and what takes their place in a call of this one.
INSTEAD = {
    **dict.fromkeys(("labels", "class_names"), "class_labels"),
    **dict.fromkeys(("prompts", "text", "captions"), "prompt"),
    **dict.fromkeys(("encoder_hidden_states", "text_embeds"), "prompt_embeds"),
    "negative_prompts": "negative_prompt",
    **dict.fromkeys(("num_images_per_prompt", "batch_size", "num_samples"), "num_images"),
    **dict.fromkeys(("height", "width"), "latents or image of that size"),
    **dict.fromkeys(("timesteps", "sigmas", "num_steps", "steps"), "num_inference_steps"),
    **dict.fromkeys(("guidance", "cfg_scale"), "guidance_scale"),
    **dict.fromkeys(("eta", "sampler"), "pipeline.use_sampler(name)"),
    **dict.fromkeys(("callback", "callback_steps"), "callback_on_step_end"),
    "seed": "generator=torch.Generator().manual_seed(seed)",
    "init_image": "image",
    "mask": "mask_image",
}


def has_prompts(unet: Denoiser) -> bool:
    """Return whether a denoiser was trained with prompts."""
    return isinstance(unet, UNet2DConditionModel)


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


def call_back(
    pipeline: Any, callback: Callable | None, names: Sequence[str]
) -> Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Return what calls a `callback_on_step_end` after a step; None without a callback.

    Args:
        pipeline: for the callback.
        callback: `callback(pipeline, i, t, {"latents": ...})`, may return other latents in a dict.
        names: of the tensors that it gets.
    """
    if callback is None:
        return None

    def after_step(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        tensors = {"latents": latents} if names else {}
        return (callback(pipeline, i, t, tensors) or {}).get("latents", latents)

    return after_step


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


def drop_conditions(
    conditions: Conditions, null: Conditions, uniform: torch.Tensor, rate: float
) -> Conditions:
    """Replace the conditions of some images by null conditions (Ho and Salimans 2022).

    A share `rate` of the images loses all of them. If there are several, a share `rate` of the
    others loses one, so that a model draws from each of them alone.

    Args:
        conditions: of B images.
        null: the null conditions of B images; names that they lack are dropped.
        uniform: `(B,)` in [0, 1], decides.
        rate: from 0 to 1.
    """
    kept, single = {}, (uniform - rate) / max(1 - rate, 1e-9) * len(null)
    for number, (name, tensor) in enumerate(null.items()):
        dropped = uniform < rate
        if len(null) > 1:
            dropped |= (single >= number * rate) & (single < (number + 1) * rate)
        dropped = dropped.view(-1, *[1] * (tensor.ndim - 1))
        kept[name] = torch.where(dropped, tensor, conditions[name])
    return kept


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
        given: the given arguments by name: `class_labels` and `prompts`, used in turn; `image` and
            `mask`, one for all or one an image; `latents` and `generators`, one an image.

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
