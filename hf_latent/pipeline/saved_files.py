"""The files of a saved pipeline: which there are, and how new ones replace old ones."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

# The files saved with every model. They import each other, and nothing else of their package.
# A glob would also find files of other local models, because these share one cache of code.
MODULES = (
    *("pipeline", "encode", "add_noise", "denoise", "decode"),
    *("autoencoders", "conditions", "prompts", "image_to_image"),
    *("samplers", "hub_format", "saved_files", "weights"),
)
# Earlier versions also saved these.
RETIRED_MODULES = (
    *("pipeline_steps", "class_labels", "guidance", "image_conditions"),
    *("inference_steps", "upcast", "exact_weights"),
)
# The last two only if there is a guide, or if there are prompts.
MODELS = ("vae", "unet", "guide_unet", "text_encoder")
# What tokenizers of transformers save.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model"),
)
OPTIONAL_COMPONENTS = ["guide_unet", "text_encoder", "tokenizer"]
# Entries of model_index.json that are left out where they are empty.
LEFT_OUT = (*OPTIONAL_COMPONENTS, "guidance", "num_inference_steps", "distilled")


def saved_models(index: Mapping[str, Any]) -> list[str]:
    """Return the names of a pipeline's models, from its model_index.json."""
    return [name for name in MODELS if (index.get(name) or [None])[0] is not None]


def add_code(folder: Path, class_name: str) -> None:
    """Copy the code into a saved pipeline's folder, and name it in model_index.json.

    Args:
        folder: of the pipeline.
        class_name: of the pipeline's class, which is defined in `pipeline.py`.
    """
    for module in MODULES:
        shutil.copyfile(Path(__file__).with_name(f"{module}.py"), folder / f"{module}.py")
    index = folder / DiffusionPipeline.config_name
    config = json.loads(index.read_text(encoding="utf-8"))
    config["_class_name"] = [MODULES[0], class_name]
    config.pop("_name_or_path", None)  # a local path
    for name in LEFT_OUT:
        if config.get(name) in (None, [None, None]):
            config.pop(name, None)  # as older versions saved it
    index.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def weight_patterns(component: str, variant: str | None) -> tuple[str, str, str]:
    """Return the file names of a model's weights of one variant: one file, shards, index."""
    kind = f".{variant}" if variant else ""
    name = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    return (
        f"{name}{kind}.safetensors",
        f"{name}{kind}-?????-of-?????.safetensors",
        f"{name}.safetensors.index{kind}.json",
    )


def replace_files(new: Path, folder: Path, variant: str | None) -> None:
    """Move a saved pipeline over an older one, whose weights stay until the new ones are there.

    Args:
        new: the folder of the new one, on the same disk; its files are moved away.
        folder: of the older one, if any; other files in it stay, also weights of other variants.
        variant: of the new weights.
    """
    files = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    retired = RETIRED_MODULES if _has_code(folder) else ()
    mode = new.stat().st_mode & 0o666  # what the umask gives to a file; safetensors gives 0600
    for file in sorted(files, key=lambda file: file.name == DiffusionPipeline.config_name):
        (folder / file).parent.mkdir(exist_ok=True)
        (new / file).chmod(mode)
        os.replace(new / file, folder / file)
    for component in {file.parts[0] for file in files} & set(MODELS):
        # diffusers would load an old index of shards instead of a new single file.
        for pattern in weight_patterns(component, variant):
            for path in (folder / component).glob(pattern):
                if path.relative_to(folder) not in files:
                    path.unlink()
    for module in retired:
        (folder / f"{module}.py").unlink(missing_ok=True)


def _has_code(folder: Path) -> bool:
    """Return whether a folder holds a pipeline saved with its code."""
    try:
        index = json.loads((folder / DiffusionPipeline.config_name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index.get("_class_name"), list)


def pipeline_files(folder: Path, with_card: bool) -> list[str]:
    """Return the names of a saved pipeline's files, without other files in its folder.

    Args:
        folder: of the pipeline.
        with_card: include README.md, if it exists, and its pictures.
    """
    names = ["model_index.json", *(f"{module}.py" for module in MODULES)]
    index = json.loads((folder / names[0]).read_text(encoding="utf-8"))
    for component in (*saved_models(index), "scheduler"):
        for path in (folder / component).iterdir():
            if path.suffix in (".json", ".safetensors"):
                names.append(f"{component}/{path.name}")
    names += [
        f"tokenizer/{name}" for name in TOKENIZER_FILES if (folder / "tokenizer" / name).is_file()
    ]
    card = folder / "README.md"
    if with_card and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        shown = [path.name for path in folder.glob("*.png") if f"({path.name})" in text]
        names += [card.name, *shown]
    return names
