"""Models from a folder or the Hub, with one line when that fails."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from hf_latent.errors import UserError
from hf_latent.pipeline.samplers import get_objective, load_scheduler
from hf_latent.pipeline.weights import align_weights, load_exactly

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny
PRETRAINED = Path(__file__).parent / "pretrained"


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turn whatever loading raises into one line, and keep the libraries' own lines out.

    Args:
        name: the folder or Hub id.
        what: what is loaded, for the message.

    Yields:
        Nothing; load inside.

    Raises:
        UserError: if loading fails.
    """
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    # A damaged or foreign folder makes the libraries raise nearly anything.
    except Exception as error:
        told = error if Path(name).is_dir() else _hub_answer(error)
        cause = " ".join(str(told).split())[:200]
        where = "in that folder" if Path(name).is_dir() else "no such folder, and not on the Hub"
        if isinstance(told, RepositoryNotFoundError):
            where += " for this token: correct the name or, for a private one, run hf auth login"
        raise UserError(
            f"no {what} found at {name}: {where} ({type(told).__name__}: {cause})"
        ) from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
        diffusers_logging.enable_progress_bar()


def _hub_answer(error: BaseException) -> BaseException:
    """Return what the Hub answered, where the libraries raise an error of their own after it."""
    answer: BaseException | None = error
    while answer is not None and not isinstance(answer, HfHubHTTPError | OfflineModeIsEnabled):
        answer = answer.__cause__ or answer.__context__
    return answer or error


def released_models() -> list[str]:
    """Return the names of the models that come with this package."""
    return sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())


def find_released(name: str) -> str:
    """Return the folder of a model that comes with this package, given its name.

    Args:
        name: any other name, and that of a folder which holds a model, is returned as it is.
    """
    local = any((Path(name) / file).is_file() for file in ("config.json", "model_index.json"))
    return str(PRETRAINED / name) if name in released_models() and not local else name


def load_autoencoder(name: str) -> Autoencoder:
    """Load an autoencoder, from safetensors only.

    Args:
        name: a folder or Hub id, of an autoencoder or of a pipeline with a `vae` component; or the
            name of one that comes with this package (`fashion-mnist-f4`, `emoji`).

    Returns:
        The autoencoder, on the CPU in float32.

    Raises:
        UserError: if there is none of a known class, or its weights are not exactly its own.
    """
    name = find_released(name)
    with loading(name, "autoencoder"):
        return _load(name, "vae", AutoencoderKL, AutoencoderTiny)[0]


def load_denoiser(name: str) -> tuple[UNet2DModel, SchedulerMixin | None]:
    """Load a denoiser, from safetensors only.

    Args:
        name: a folder or Hub id, of a UNet2DModel or of a pipeline with a `unet` component; or the
            name of one that comes with this package (`fashion-mnist`).

    Returns:
        The denoiser, on the CPU in float32; and the pipeline's scheduler, which says the objective
        and the noise levels, None for a denoiser alone.

    Raises:
        UserError: if there is none of that class, or its weights are not exactly its own.
    """
    scheduler, name = None, find_released(name)
    with loading(name, "denoiser"):
        unet, in_pipeline = _load(name, "unet", UNet2DModel)
        if in_pipeline:
            scheduler = load_scheduler(name)
            get_objective(scheduler)  # raises if it does not say
    align_weights(unet)
    return unet, scheduler


def _load(name: str, component: str, *kinds: type[Any]) -> tuple[Any, bool]:
    """Load a model of one of some classes; the second value is whether it is a pipeline's."""
    is_local = Path(name).is_dir()
    in_pipeline = (Path(name) / "model_index.json").is_file()
    try:
        model = load_exactly(name, component if in_pipeline else None)
    except OSError:
        if is_local:
            raise
        in_pipeline, model = True, load_exactly(name, component)
    if not isinstance(model, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{name} is a {type(model).__name__}, not a {expected}")
    if is_local:
        model.register_to_config(_name_or_path="")  # not a path of this machine in a save
    return model, in_pipeline
