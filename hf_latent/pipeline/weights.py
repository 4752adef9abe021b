"""Weights of diffusers models: loaded whole, with the same results wherever they lie."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, AutoModel, ModelMixin

ALIGNMENT_BYTES = 64


def load_exactly(name: str, subfolder: str | None = None, **kwargs: Any) -> ModelMixin:
    """Load a diffusers model, from safetensors only, with all its weights and no others.

    Args:
        name: a folder, or the id of a repository on the Hub.
        subfolder: of it.
        **kwargs: of `ModelMixin.from_pretrained`.

    Raises:
        ValueError: if its class is none of diffusers, or the weights are not exactly its own.
    """
    where = {"subfolder": subfolder} if subfolder else {}
    config = AutoModel.load_config(name, **where)
    model_class: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)):
        raise ValueError(f"{config.get('_class_name')} is no model of diffusers")
    model, found = model_class.from_pretrained(  # type: ignore[attr-defined]
        name, use_safetensors=True, output_loading_info=True, **where, **kwargs
    )
    kinds = {kind: found[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")}
    kinds["missing"] = kinds["missing"] or lacking_weights(model)  # not found out of several files
    wrong = [f"{kind}: {', '.join(map(str, keys[:3]))}" for kind, keys in kinds.items() if keys]
    if wrong:
        raise ValueError(
            f"the saved {subfolder or model_class.__name__} has not exactly its weights, "
            + "; ".join(wrong)
        )
    return model


def lacking_weights(model: torch.nn.Module) -> list[str]:
    """Return the names of a loaded model's weights that its files lack.

    diffusers leaves them without values.

    Args:
        model: whose weights are all in memory.
    """
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def check_weights(name: str, model: torch.nn.Module) -> None:
    """Refuse a model that lacks weights; weights that accelerate keeps elsewhere are not looked at.

    Args:
        name: of the component, for the message.
        model: a component of a pipeline.

    Raises:
        ValueError: naming some of what is missing.
    """
    lacking = [] if hasattr(model, "hf_device_map") else lacking_weights(model)
    if lacking:
        raise ValueError(f"the {name} lacks weights: {', '.join(lacking[:3])}")


def align_weights(model: torch.nn.Module) -> None:
    """Move weights on a CPU to addresses at which matrix products always give the same last bits.

    The weights of a mapped file begin at any byte, and the last bits depend on that.

    Args:
        model: whose parameters are changed in place.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT_BYTES:
            parameter.data = parameter.data.clone()


@contextmanager
def upcast_where_needed(vae: AutoencoderKL | AutoencoderTiny) -> Iterator[torch.dtype]:
    """Bring a float16 autoencoder to float32 for a while, if its `force_upcast` asks for it.

    The activations of Stable Diffusion XL's autoencoder grow beyond what float16 holds, and its
    images would be black. Others have `force_upcast` by diffusers' default and are only slower.
    The weights come back as they were, to the bit. Under diffusers' group offloading, which puts
    its own weights in place, nothing is changed.

    Args:
        vae: changed in place.

    Yields:
        The autoencoder's own dtype; inside, it does not overflow.
    """
    dtype = vae.dtype
    needed = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    needed = needed and not hasattr(vae, "_diffusers_hook")
    if needed:
        vae.float()
    try:
        yield dtype
    finally:
        if needed:
            vae.half()
