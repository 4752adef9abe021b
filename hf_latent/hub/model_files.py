"""Which files of a folder are a model: an explicit list, each file checked before it is sent."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_latent.errors import UserError
from hf_latent.output import read_json
from hf_latent.pipeline.autoencoders import KINDS
from hf_latent.pipeline.saved_files import MODELS, MODULES, RETIRED_MODULES, TOKENIZER_FILES

PIPELINE = "LatentDiffusionPipeline"
ENTRIES = ("model_index.json", "config.json")
REPORTS = ("training.json", "metrics.json")
ABOUT = (*REPORTS, "config.yaml")
CODE = tuple(f"{module}.py" for module in MODULES)
CONFIGS = ("config.json", "scheduler_config.json")
# One file, or the shards of a large model; both may be of a variant, like fp16.
WEIGHTS = re.compile(
    r"(diffusion_pytorch_)?model(\.\w+)?(?P<shard>-\d{5}-of-\d{5})?(\.\w+)?\.safetensors",
    re.ASCII,
)
INDEX = re.compile(r"(diffusion_pytorch_)?model\.safetensors\.index(\.\w+)?\.json", re.ASCII)
COMPONENT = re.compile(r"[a-z]\w*", re.ASCII)
_WEIGHTS = (
    r"(diffusion_pytorch_)?model(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors(\.index(\.\w+)?\.json)?"
)
# All files of a model's folder that this package writes, or once wrote: a new model replaces them.
MODEL_FILES = re.compile(
    rf"({'|'.join((*MODELS, 'vqvae', 'transformer'))})/(config\.json|{_WEIGHTS})|"
    rf"scheduler/scheduler_config\.json|tokenizer/({'|'.join(map(re.escape, TOKENIZER_FILES))})|"
    rf"({'|'.join((*MODULES, *RETIRED_MODULES))})\.py|model_index\.json|config\.json|{_WEIGHTS}|"
    r"README\.md|training\.json|metrics\.json|config\.yaml|"
    r"(samples|reconstructions|closest_by_latents)\.png",
    re.ASCII,
)
CHECKPOINT_FILES = re.compile(
    r"state\.json|\w+_optimizer\.safetensors|"
    rf"(vae|unet|discriminator)\w*/(config\.json|{_WEIGHTS})",
    re.ASCII,
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_MOMENTS = re.compile(r"\w+_optimizer\.safetensors", re.ASCII)


def model_files(folder: Path) -> tuple[str, str, list[str]]:
    """List a model's files, and check each.

    Args:
        folder: of a pipeline or an autoencoder.

    Returns:
        The entry (`model_index.json` of a pipeline, `config.json` of an autoencoder), the class
        that it names, and the names of the other files, relative to the folder; no card and no
        pictures.

    Raises:
        UserError: if there is no model, a file is missing, damaged or a link, or a file names
            another one that cannot be part of a model.
    """
    entry = next((name for name in ENTRIES if (folder / name).is_file()), ENTRIES[-1])
    values = read_json(folder / entry)
    if entry == "model_index.json":
        class_name, files = _pipeline_class(folder, values)
        for part in _components(folder, values):
            files += _component_files(folder, part)
    else:
        class_name = str(values.get("_class_name"))
        if class_name not in KINDS:
            raise UserError(
                f"{folder / entry} is of a {class_name}, and not of an autoencoder "
                f"({', '.join(KINDS)}) or a pipeline: push the model's own folder"
            )
        files = _weight_files(folder)
    files += [name for name in ABOUT if is_file(folder / name)]
    check_files(folder, [entry, *files])
    return entry, class_name, files


def checkpoint_files(run: Path) -> list[str]:
    """List the files of a run's checkpoints, and check each.

    Returns:
        Names relative to the run's folder.

    Raises:
        UserError: if there is no checkpoint, or one is damaged.
    """
    names = []
    for checkpoint in sorted(run.glob("checkpoint-*")):
        if not _CHECKPOINT.fullmatch(checkpoint.name):
            continue
        names.append(f"{checkpoint.name}/state.json")
        for path in sorted(checkpoint.iterdir()):
            if path.is_dir() and COMPONENT.fullmatch(path.name):
                names += _component_files(run, f"{checkpoint.name}/{path.name}")
            elif _MOMENTS.fullmatch(path.name):
                names.append(f"{checkpoint.name}/{path.name}")
    if not names:
        raise UserError(
            f"--checkpoints: {run} has no checkpoint-N: pass the folder of the run as --model"
        )
    check_files(run, names)
    return names


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Check that each file lies in the folder itself and can be read.

    Args:
        folder: the files' root.
        names: relative to the folder.

    Raises:
        UserError: for the first file that is missing, a link, no JSON object or cut short.
    """
    for name in names:
        path = folder / name
        if path.resolve() != folder.resolve() / name:
            raise UserError(f"{path} is a link: put the file itself in its place")
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".safetensors":
            with weights_file(path):
                pass
        elif not path.is_file():
            raise UserError(f"{path} is missing: save the model again")


def is_file(path: Path) -> bool:
    """Return whether a path is a file itself: a link may lead to a file of another owner."""
    return path.is_file() and not path.is_symlink()


@contextmanager
def weights_file(path: Path) -> Iterator[Any]:
    """Open a safetensors file, whose header must fit its size.

    Yields:
        What `safetensors.safe_open` returns, for torch.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is missing, cut short or damaged ({error}): save the model again"
        ) from error


def shard_names(index: Path) -> list[str]:
    """Return the names of the shards in an index; each must hold the weights that it lists.

    Args:
        index: JSON with a `weight_map`, from a weight to its shard.

    Raises:
        UserError: if a shard is missing, damaged, or no file of weights.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: save the model again")
    shards: dict[str, set[str]] = {}
    for weight, shard in weight_map.items():
        match = WEIGHTS.fullmatch(shard) if isinstance(shard, str) else None
        if not match or not match["shard"]:
            raise UserError(
                f"{index} names {shard!r}, which is no file of weights: save the model again"
            )
        shards.setdefault(shard, set()).add(weight)
    for shard, weights in shards.items():
        with weights_file(index.parent / shard) as file:
            if set(file.keys()) != weights:
                raise UserError(
                    f"{index.parent / shard} does not hold the weights that {index.name} lists: "
                    "save the model again"
                )
    return sorted(shards)


def _pipeline_class(folder: Path, index: dict[str, Any]) -> tuple[str, list[str]]:
    """Return a pipeline's class, and the files of the code that travels with it."""
    name = index.get("_class_name")
    if name == [MODULES[0], PIPELINE]:
        return PIPELINE, list(CODE)
    if isinstance(name, str) and name != PIPELINE:
        return name, []  # a class of diffusers
    raise UserError(
        f"{folder / 'model_index.json'} names the class {json.dumps(name)}, without the code "
        "beside it that others would need: load it with LatentDiffusionPipeline and save it again"
    )


def _components(folder: Path, index: dict[str, Any]) -> list[str]:
    """Return the names of a pipeline's components that have a folder."""
    found = []
    for name, value in index.items():
        if not isinstance(value, list) or name == "_class_name" or value == [None, None]:
            continue
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        if not COMPONENT.fullmatch(name) or len(value) != 2 or value[0] != library:
            raise UserError(
                f"{folder / 'model_index.json'} names {name!r} as {json.dumps(value)}, which is no "
                f"part of {library}: push such a model with `hf upload`"
            )
        found.append(name)
    return found


def _component_files(folder: Path, name: str) -> list[str]:
    """Return the names of a component's files, relative to the model's folder."""
    part = folder / name
    if not part.is_dir():
        raise UserError(f"{folder} has no folder {name}, which it needs: save the model again")
    if (part / "scheduler_config.json").is_file():
        return [f"{name}/scheduler_config.json"]
    if name == "tokenizer":
        return [f"{name}/{file}" for file in TOKENIZER_FILES if (part / file).is_file()]
    return [f"{name}/{file}" for file in ("config.json", *_weight_files(part))]


def _weight_files(folder: Path) -> list[str]:
    """Return the weights of all variants; shards only if an index names them."""
    found = []
    for path in sorted(folder.iterdir()):
        match = WEIGHTS.fullmatch(path.name)
        if match and not match["shard"]:
            found.append(path.name)
        elif INDEX.fullmatch(path.name):
            found += [path.name, *shard_names(path)]
    if not found:
        raise UserError(
            f"{folder} has no weights (diffusion_pytorch_model.safetensors): save the model again"
        )
    return found
