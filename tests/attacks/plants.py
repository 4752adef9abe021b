"""Plant code in a folder; the command must not run it."""

import json
from collections.abc import Callable
from pathlib import Path

from hf_latent.pipeline.saved_files import MODULES
from tests.attacks.subjects import SUBJECTS
from tests.marking_pickle import MarkingPickle

BESIDE = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "state.pkl", "optimizer.pt", "x.ckpt")
YAML = "!!python/object/apply:os.mkdir [{mark}]\n"


def plant_pickle(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, mark: MarkingPickle(mark).write(folder / name)


def plant_code(name: str) -> Callable[[Path, Path], None]:
    """Plant a module that leaves the mark when it is imported, and classes of any name."""

    def plant(folder: Path, mark: Path) -> None:
        text = (
            f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n"
            "class Evil:\n    pass\n"
            "def __getattr__(name):\n    return Evil\n"
        )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return plant


def plant_class(config: str, **values: object) -> Callable[[Path, Path], None]:
    """Plant a module, and its class's name in a configuration."""

    def plant(folder: Path, mark: Path) -> None:
        for name in ("evil.py", f"{Path(config).parent}/evil.py", "vae/evil.py", "unet/evil.py"):
            if (folder / name).parent.is_dir():
                plant_code(name)(folder, mark)
        path = folder / config
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(known | values))

    return plant


def plant_text(name: str, text: str) -> Callable[[Path, Path], None]:
    def plant(folder: Path, mark: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(mark=mark))

    return plant


def plants_of(name: str) -> dict[str, Callable[[Path, Path], None]]:
    """Return what can be planted in a subject: a description, and the function that plants it.

    The function takes the subject's folder and the mark, a folder that the planted code makes.
    """
    folder = SUBJECTS[name].folder
    places = {
        "photos": [""],
        "autoencoder": [""],
        "model": ["", "vae/", "unet/", "scheduler/"],
        "cache": [""],
        "autoencoder's run": ["", "checkpoint-2/", "checkpoint-2/vae/"],
        "denoiser's run": ["", "checkpoint-2/unet/", "latents/"],
    }[name]
    found = {f"{place}{x}": plant_pickle(f"{place}{x}") for place in places for x in BESIDE}
    modules = (f"{folder}.py", "__init__.py", "conftest.py")
    found |= {f"{place}{x}": plant_code(f"{place}{x}") for place in places for x in modules}
    found["config.yaml"] = plant_text("config.yaml", YAML)
    found["README.md"] = plant_text("README.md", "{{{{ ''.__class__.__mro__ }}}}\n---\n" + YAML)
    if name == "photos":  # as a data set brings its own loading script
        found |= {x: plant_text(x, YAML) for x in ("dataset_infos.json", "metadata.yaml")}
        found["0.eps"] = plant_text("0.eps", "%!PS\n(%pipe%mkdir {mark}) (w) file\n")
    if name == "model":
        found |= {x: plant_code(x) for x in MODULES}
        evil = {"vae": ["evil", "Evil"], "unet": ["m.unet.evil", "Evil"]}
        evil |= {"scheduler": ["m.scheduler.evil", "Evil"], "_class_name": ["evil", "Evil"]}
        for key, value in evil.items():
            found[f"model_index.json {key}"] = plant_class("model_index.json", **{key: value})
    for config in ("config.json", "unet/config.json", "vae/config.json"):
        if name in ("autoencoder", "model") and (name == "model") == ("/" in config):
            auto_map = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
            found[f"{config} auto_map"] = plant_class(config, auto_map=auto_map)
            found[f"{config} _class_name"] = plant_class(config, _class_name="evil.Evil")
    if "run" in name:
        found["checkpoint-2/state.json"] = plant_pickle("checkpoint-2/state.json")
        optimizer = "checkpoint-2/" + ("vae" if name.startswith("auto") else "unet")
        found[f"{optimizer}_optimizer.safetensors"] = plant_pickle(
            f"{optimizer}_optimizer.safetensors"
        )
    if name == "cache":
        found["manifest.json"] = plant_pickle("manifest.json")
        found["train-000000.safetensors"] = plant_pickle("train-000000.safetensors")
    return found
