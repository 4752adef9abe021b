"""The files of a saved pipeline: which there are, and how they come into its folder."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

# The files that are saved with every model; they import each other, and nothing else of a package.
MODULES = (
    *("pipeline", "pipeline_steps", "encode", "add_noise", "denoise", "decode"),
    *("class_labels", "guidance", "image_conditions", "samplers"),
    *("inference_steps", "upcast"),
    *("hub_format", "saved_files", "exact_weights"),
)
MODELS = ("vae", "unet", "guide_unet")  # the last one where there is a guide


def saved_models(index: Mapping[str, Any]) -> list[str]:
    """Return which models a pipeline has, by what its model_index.json names."""
    return [name for name in MODELS if (index.get(name) or [None])[0] is not None]


def add_code(folder: Path, class_name: str) -> None:
    """Copy the code into a saved pipeline, and name it in model_index.json.

    Args:
        folder: of the pipeline.
        class_name: of the pipeline's class, which is in `pipeline.py`.
    """
    for module in MODULES:
        shutil.copyfile(Path(__file__).with_name(f"{module}.py"), folder / f"{module}.py")
    index = folder / DiffusionPipeline.config_name
    config = json.loads(index.read_text(encoding="utf-8"))
    config["_class_name"] = [MODULES[0], class_name]
    config.pop("_name_or_path", None)  # where this was loaded from
    for name, none in (("guide_unet", [None, None]), ("guidance", None)):
        if name in config and config[name] == none:
            del config[name]  # as it was before there was any
    index.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def weight_patterns(variant: str | None) -> tuple[str, str, str]:
    """Return the names that a model's weights of one variant may have: whole, shards, index."""
    kind = f".{variant}" if variant else ""
    name = "diffusion_pytorch_model"
    return (
        f"{name}{kind}.safetensors",
        f"{name}{kind}-?????-of-?????.safetensors",
        f"{name}.safetensors.index{kind}.json",
    )


def replace_files(new: Path, folder: Path, variant: str | None) -> None:
    """Move a saved pipeline over an older one, whose weights are there until the new ones are.

    Args:
        new: the folder of the new one, on the same disk; it is left empty of files.
        folder: of the older one, if any; its other files stay.
        variant: of the new weights; of others, the old ones stay.
    """
    files = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda file: file.name == DiffusionPipeline.config_name):
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(new / file, folder / file)
    for component in {file.parts[0] for file in files} & set(MODELS):
        # diffusers would load an old index of shards in place of one new file.
        for pattern in weight_patterns(variant):
            for path in (folder / component).glob(pattern):
                if path.relative_to(folder) not in files:
                    path.unlink()


def sent_files(folder: Path, with_card: bool) -> list[str]:
    """Return the files of a saved pipeline, and of its card, whatever else lies in its folder.

    Args:
        folder: of the pipeline.
        with_card: name README.md and its pictures too, where they are there.
    """
    names = ["model_index.json", *(f"{module}.py" for module in MODULES)]
    index = json.loads((folder / names[0]).read_text(encoding="utf-8"))
    for component in (*saved_models(index), "scheduler"):
        for path in (folder / component).iterdir():
            if path.suffix in (".json", ".safetensors"):
                names.append(f"{component}/{path.name}")
    card = folder / "README.md"
    if with_card and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        shown = [path.name for path in folder.glob("*.png") if f"({path.name})" in text]
        names += [card.name, *shown]
    return names
