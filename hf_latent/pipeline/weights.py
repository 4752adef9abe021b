"""Weights of diffusers models: complete, finite, and at addresses that do not change results."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoModel, ModelMixin

from .autoencoders import Autoencoder

ALIGNMENT_BYTES = 64


def load_exactly(name: str, subfolder: str | None = None, **kwargs: Any) -> ModelMixin:
    """Load a model from safetensors, with all its weights, all finite, and no others.

    Args:
        name: a folder or Hub id.
        subfolder: the model's folder in it.
        **kwargs: of `ModelMixin.from_pretrained`.

    Raises:
        ValueError: if its class is no model of diffusers or transformers, or weights are missing,
            left over or not finite.
    """
    where = {"subfolder": subfolder} if subfolder else {}
    config = AutoModel.load_config(name, **where)
    model_class = _model_class(config)
    if not {"dtype", "torch_dtype"} & kwargs.keys():
        kwargs["torch_dtype"] = torch.float32  # the default of diffusers, but not of transformers
    model, found = model_class.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, **where, **kwargs
    )
    kinds = {x: sorted(found[f"{x}_keys"]) for x in ("missing", "unexpected", "mismatched")}
    # With several files diffusers does not report what is missing.
    kinds["missing"] = kinds["missing"] or missing_weights(model)
    wrong = [f"{kind}: {', '.join(map(str, keys[:3]))}" for kind, keys in kinds.items() if keys]
    if wrong:
        raise ValueError(
            f"the weights of the saved {subfolder or model_class.__name__} do not fit: "
            + "; ".join(wrong)
        )
    check_weights(subfolder or model_class.__name__, model)
    return model


def _model_class(config: dict[str, Any]) -> Any:
    """Return the class that a configuration names, of diffusers or transformers."""
    if "_class_name" in config:
        library, base, name = diffusers, ModelMixin, str(config["_class_name"])
    else:
        import transformers

        library, base = transformers, transformers.PreTrainedModel
        name = str((config.get("architectures") or [None])[0])
    found: Any = getattr(library, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name} is no model of {library.__name__}")
    return found


def loading_options(folder: str, component: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a pipeline that apply to one of its models, as in diffusers."""
    passed = ("dtype", "torch_dtype", "low_cpu_mem_usage", "disable_mmap")
    options = {key: kwargs[key] for key in passed if key in kwargs}
    for key in {"dtype", "torch_dtype"} & options.keys():
        if isinstance(options[key], dict):
            options[key] = options[key].get(component, options[key].get("default", torch.float32))
    variant = kwargs.get("variant")
    if variant and any(Path(folder, component).glob(f"*.{variant}*")):
        options["variant"] = variant
    return options


def missing_weights(model: torch.nn.Module) -> list[str]:
    """Return the names of weights that a model's files lack; diffusers leaves them without values.

    Args:
        model: with all its weights in memory.
    """
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def check_weights(name: str, model: torch.nn.Module) -> None:
    """Check that all weights in memory are finite, and that none are missing.

    Accelerate keeps some weights of a model with a device map outside of memory.

    Raises:
        ValueError: naming the component and some of these weights.
    """
    missing = [] if hasattr(model, "hf_device_map") else missing_weights(model)
    if missing:
        raise ValueError(f"the {name} lacks weights: {', '.join(missing[:3])}")
    check_finite(name, model.state_dict().items())


def check_finite(name: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Check that no value is NaN or infinite. A sum of values shows it, and is fast.

    Args:
        name: what they belong to, for the message.
        tensors: names and tensors.

    Raises:
        ValueError: naming some of the tensors.
    """
    wrong = [
        key
        for key, x in tensors
        if x.is_floating_point() and not x.is_meta and not x.float().sum().isfinite()
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights of the {name} are not finite ({', '.join(wrong[:3])}): the "
            "training diverged, or the file is damaged"
        )


def align_weights(model: torch.nn.Module) -> None:
    """Copy a model's CPU weights, in place, to addresses at which results are always bit-equal.

    Weights in a memory-mapped file begin at any byte; the last bits of matrix products depend on
    that.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT_BYTES:
            parameter.data = parameter.data.clone()


@contextmanager
def upcast_where_needed(vae: Autoencoder) -> Iterator[torch.dtype]:
    """Convert a float16 autoencoder to float32 within the block, if it has `force_upcast`.

    The activations of Stable Diffusion XL's autoencoder overflow float16, and its images would be
    black. Other autoencoders have `force_upcast` by diffusers' default and only become slower.
    Afterwards the weights are bit-equal to those before. Diffusers' group offloading puts its own
    weights in place, so nothing is converted.

    Args:
        vae: changed in place.

    Yields:
        The autoencoder's dtype before the block.
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
