"""Which files of a folder are a model: an explicit list, each checked before it may be sent."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_latent.errors import UserError
from hf_latent.pipeline.hub_format import MODULES

PIPELINE, AUTOENCODERS = "LatentDiffusionPipeline", ("AutoencoderKL", "AutoencoderTiny")
ABOUT = ("training.json", "config.yaml", "metrics.json")
CODE = tuple(f"{module}.py" for module in MODULES)
CONFIGS = ("config.json", "scheduler_config.json")
# One file, or the shards of a large model, and perhaps of a variant, like fp16.
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.\w+)?(?P<shard>-\d{5}-of-\d{5})?(\.\w+)?\.safetensors", re.ASCII
)
INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(\.\w+)?\.json", re.ASCII)
COMPONENT = re.compile(r"[a-z]\w*", re.ASCII)


@dataclass(frozen=True)
class ModelFolder:
    """A whole model.

    Attributes:
        folder: where it lies.
        entry: `model_index.json` of a pipeline, or `config.json` of an autoencoder.
        class_name: of the pipeline or the autoencoder.
        files: the names of its other files, with slashes; no card and no pictures.
    """

    folder: Path
    entry: str
    class_name: str
    files: tuple[str, ...]


def open_model_folder(folder: Path) -> ModelFolder:
    """Find a model's files, and make sure that it is whole.

    Args:
        folder: of a pipeline or an autoencoder.

    Returns:
        The model.

    Raises:
        UserError: if there is none, if one of its files is missing, damaged or a link, or if one
            names files that are none of a model.
    """
    about = [name for name in ABOUT if is_file(folder / name)]
    if (folder / "model_index.json").is_file():
        index = read_json(folder, "model_index.json")
        pipeline, code = _pipeline_class(folder, index)
        parts = components(folder, index)
        files = [name for part in parts for name in component_files(folder, part)]
        return ModelFolder(folder, "model_index.json", pipeline, (*files, *code, *about))
    class_name = read_json(folder, "config.json").get("_class_name")
    if class_name not in AUTOENCODERS:
        raise UserError(
            f"{folder / 'config.json'} is of a {class_name}, and not of an autoencoder "
            f"({' or '.join(AUTOENCODERS)}) or a pipeline: push the model's own folder"
        )
    return ModelFolder(folder, "config.json", class_name, (*weight_files(folder), *about))


def components(folder: Path, index: dict[str, Any]) -> list[str]:
    """Return the names of a pipeline's components that have folders of their own.

    Args:
        folder: of the pipeline, for messages.
        index: the content of its model_index.json.

    Raises:
        UserError: for a component that is none of diffusers, or whose name is no folder's name.
    """
    found = []
    for name, value in index.items():
        if not isinstance(value, list) or name == "_class_name" or value == [None, None]:
            continue
        if not COMPONENT.fullmatch(name) or len(value) != 2 or value[0] != "diffusers":
            raise UserError(
                f"{folder / 'model_index.json'} names {name!r} as {json.dumps(value)}, which is no "
                "part of diffusers: push such a model with `hf upload`"
            )
        found.append(name)
    return found


def component_files(folder: Path, name: str) -> list[str]:
    """Return the names of a component's files in the model's folder, with slashes.

    Args:
        folder: of the model.
        name: of the component's folder in it.

    Raises:
        UserError: if the component is not whole.
    """
    part = folder / name
    if part.is_symlink() or not part.is_dir():
        raise UserError(f"{folder} has no folder {name}, which it needs: save the model again")
    if is_file(part / "scheduler_config.json"):
        read_json(part, "scheduler_config.json")
        return [f"{name}/scheduler_config.json"]
    read_json(part, "config.json")
    return [f"{name}/config.json", *(f"{name}/{file}" for file in weight_files(part))]


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold a part's weights; each has a readable header.

    Shards belong to the weights if an index names them.

    Args:
        folder: of the part.

    Raises:
        UserError: if there are none, one is cut short, or an index does not fit its shards.
    """
    found = []
    for path in sorted(folder.iterdir()):
        match = WEIGHTS.fullmatch(path.name)
        if match and not match["shard"]:
            read_weight_names(path)
            found.append(path.name)
        elif INDEX.fullmatch(path.name):
            found += [path.name, *_shards(path)]
    if not found:
        raise UserError(
            f"{folder} has no weights (diffusion_pytorch_model.safetensors): save the model again"
        )
    return found


def read_weight_names(path: Path) -> set[str]:
    """Read the names in a safetensors file, whose header fits its size.

    Args:
        path: of the file.

    Raises:
        UserError: if it is missing, a link, cut short or damaged.
    """
    _refuse_link(path)
    try:
        with safe_open(path, "np") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is missing, cut short or damaged ({error}): save the model again"
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        folder: where it lies.
        name: of the file.

    Raises:
        UserError: if it is missing, a link, or no JSON object.
    """
    path = folder / name
    _refuse_link(path)
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({cause}): save the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object: save the model again")
    return values


def is_file(path: Path) -> bool:
    """Tell whether something is a file itself, and no link to one."""
    return path.is_file() and not path.is_symlink()


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a link: put the file itself in its place")


def _pipeline_class(folder: Path, index: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return a pipeline's class, and the files of the code that travels with it."""
    name = index.get("_class_name")
    if isinstance(name, str) and name != PIPELINE:
        return name, ()  # one of diffusers' own
    if name != [MODULES[0], PIPELINE]:
        raise UserError(
            f"{folder / 'model_index.json'} names the class {json.dumps(name)}, without the code "
            "beside it that others would need: load it with LatentDiffusionPipeline and save it "
            "again"
        )
    for file in CODE:
        if not is_file(folder / file):
            raise UserError(f"{folder / file} is missing or a link: save the model again")
    return PIPELINE, CODE


def _shards(index: Path) -> list[str]:
    """Return the shards that an index names; their names of weights must be those it tells."""
    weight_map = read_json(index.parent, index.name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: save the model again")
    shards: dict[str, set[str]] = {}
    for weight, shard in weight_map.items():
        match = WEIGHTS.fullmatch(shard) if isinstance(shard, str) else None
        if not match or not match["shard"]:
            raise UserError(f"{index} names {shard!r}, which is no file of weights")
        shards.setdefault(shard, set()).add(weight)
    for shard, weights in shards.items():
        if read_weight_names(index.parent / shard) != weights:
            raise UserError(
                f"{index.parent / shard} has not the weights that {index.name} tells: save the "
                "model again"
            )
    return sorted(shards)
