"""Weights of diffusers models: exactly those that belong to a model, and its results to the bit."""

from typing import Any

import diffusers
import torch
from diffusers import AutoModel, ModelMixin

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
    """Return the names of a loaded model's weights that were not in its files.

    diffusers leaves them without values.

    Args:
        model: whose weights are all in memory.
    """
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def align_weights(model: torch.nn.Module) -> None:
    """Move weights on a CPU to where matrix products always give the same last bits.

    Those of a mapped file begin at any byte, and the last bits depend on that.

    Args:
        model: whose parameters are changed in place.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT_BYTES:
            parameter.data = parameter.data.clone()
