"""How a pipeline is saved, so that it loads anywhere: with its own code beside its weights."""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import create_repo, file_exists, upload_folder

from .denoise import check_guide
from .exact_weights import load_exactly
from .guidance import check_guidance
from .samplers import check_sampler, load_scheduler

# The files that are saved with every model; they import each other, and nothing else of a package.
MODULES = (
    *("pipeline", "pipeline_steps", "encode", "add_noise", "denoise", "decode"),
    *("class_labels", "guidance", "image_conditions", "samplers"),
    *("hub_format", "exact_weights"),
)
MODELS = ("vae", "unet", "guide_unet")  # the last one where there is a guide


class HubFormat:
    """Saving and loading, for a `DiffusionPipeline` that is defined in `pipeline.py`.

    `model_index.json` names the class and its file, which lies beside it. So plain diffusers loads
    the folder with `trust_remote_code=True`; the class itself needs no remote code.
    """

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Read a configuration, where it names this class without the file."""
        config = super()._dict_from_json_file(json_file)  # type: ignore[misc]
        name = config.get("_class_name")
        if isinstance(name, list) and name[-1] in [ours.__name__ for ours in cls.__mro__]:
            # diffusers would ask to trust that file; this class is here and does not run it.
            config["_class_name"] = name[-1]
        return config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """Load a saved pipeline, as `DiffusionPipeline.from_pretrained`, from safetensors only.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository on the Hub.
            **kwargs: of `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `revision`,
                `token`, `local_files_only`, components that replace saved ones, and others.

        Raises:
            ValueError: if weights are missing, or there are others than the models have (the latter
                is not looked for with `device_map` or `quantization_config`).
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("weights are read from safetensors only: leave use_safetensors out")
        name = os.fspath(pretrained_model_name_or_path)
        folder = name if os.path.isdir(name) else str(cls.download(name, **kwargs))  # type: ignore[attr-defined]
        if not {"device_map", "quantization_config"} & kwargs.keys():
            for component in _saved_models(cls.load_config(folder)):  # type: ignore[attr-defined]
                if component not in kwargs:
                    options = _loading_options(folder, component, kwargs)
                    kwargs[component] = load_exactly(folder, component, **options)
        pipeline = super().from_pretrained(folder, **kwargs)  # type: ignore[misc]
        if kwargs.get("scheduler") is not None:  # the saved one says what the denoiser predicts
            pipeline.trained_scheduler = load_scheduler(folder)
        if name != folder:
            pipeline.register_to_config(_name_or_path=name)
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the pipeline, and the code that it needs, to a folder.

        Args:
            save_directory: is made; files of the same names are replaced, others stay.
            safe_serialization: only True, for safetensors.
            variant: a name for these weights beside others, like `fp16`.
            max_shard_size: larger weights are cut into files of this size, like `"5GB"`.
            push_to_hub: send it to the Hub too.
            **kwargs: of `push_to_hub`; `repo_id` is the folder's name by default.

        Raises:
            ValueError: if `safe_serialization` is False, or the scheduler, the guide or the
                guidance does not fit the denoiser.
        """
        check_sampler(self.trained_scheduler, self.scheduler)  # type: ignore[attr-defined]
        check_guidance(self.config.get("guidance"))  # type: ignore[attr-defined]
        guide_unet = self.guide_unet  # type: ignore[attr-defined]
        if guide_unet is not None:
            check_guide(self.unet, guide_unet)  # type: ignore[attr-defined]
        if not safe_serialization:
            raise ValueError(
                "weights are written as safetensors only: leave safe_serialization out"
            )
        folder = Path(save_directory)
        # diffusers takes no note of a component that is set where there was none.
        self.register_modules(guide_unet=guide_unet)  # type: ignore[attr-defined]
        models = _saved_models(self.config)  # type: ignore[attr-defined]
        for part in (getattr(self, component) for component in (*models, "scheduler")):
            source = part.config.get("_name_or_path") or ""
            if os.path.isabs(source) or os.path.isdir(source):
                part.register_to_config(_name_or_path="")  # no path of this machine in the files
        for component in models:
            # diffusers leaves an index of shards, which it would load in place of one new file.
            for pattern in _weight_patterns(variant):
                for path in (folder / component).glob(pattern):
                    path.unlink()
        super().save_pretrained(  # type: ignore[misc]
            str(folder), variant=variant, max_shard_size=max_shard_size
        )
        # A class that was derived elsewhere is not in these files.
        if type(self).__module__ == f"{__name__.rpartition('.')[0]}.{MODULES[0]}":
            _add_code(folder, type(self).__name__)
        if push_to_hub:
            kwargs.setdefault("repo_id", folder.absolute().name)
            _send(folder, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> str:
        """Save the pipeline to a repository on the Hub; a card that is there stays as it is.

        Args:
            repo_id: `user/name`; it is made if it is missing.
            safe_serialization: only True, for safetensors.
            variant: as of `save_pretrained`.
            max_shard_size: as of `save_pretrained`.
            **kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message`.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size)
            return _send(Path(folder), repo_id, variant, **kwargs)


def _saved_models(index: Mapping[str, Any]) -> list[str]:
    """Return which models a pipeline has, by what its model_index.json names."""
    return [name for name in MODELS if (index.get(name) or [None])[0] is not None]


def _loading_options(folder: str, component: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what of a pipeline's options is for one of its models, as diffusers hands it on."""
    passed = ("dtype", "torch_dtype", "low_cpu_mem_usage", "disable_mmap")
    options = {key: kwargs[key] for key in passed if key in kwargs}
    for key in {"dtype", "torch_dtype"} & options.keys():
        if isinstance(options[key], dict):
            options[key] = options[key].get(component, options[key].get("default", torch.float32))
    variant = kwargs.get("variant")
    if variant and any(Path(folder, component).glob(f"*.{variant}*")):
        options["variant"] = variant
    return options


def _add_code(folder: Path, class_name: str) -> None:
    """Copy the code into a saved pipeline, and name it in model_index.json."""
    for module in MODULES:
        shutil.copyfile(Path(__file__).with_name(f"{module}.py"), folder / f"{module}.py")
    index = folder / DiffusionPipeline.config_name
    config = json.loads(index.read_text(encoding="utf-8"))
    config["_class_name"] = [MODULES[0], class_name]
    config.pop("_name_or_path", None)  # where this was loaded from
    for name, none in (("guide_unet", [None, None]), ("guidance", None)):
        if name in config and config[name] == none:
            del config[name]  # as it was before there was any
    whole = index.with_suffix(".new")
    whole.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    whole.replace(index)


def _weight_patterns(variant: str | None) -> tuple[str, str, str]:
    """Return the names that a model's weights of one variant may have: whole, shards, index."""
    kind = f".{variant}" if variant else ""
    name = "diffusion_pytorch_model"
    return (
        f"{name}{kind}.safetensors",
        f"{name}{kind}-?????-of-?????.safetensors",
        f"{name}.safetensors.index{kind}.json",
    )


def _sent_files(folder: Path, with_card: bool) -> list[str]:
    """Return the files of a saved pipeline, and of its card, whatever else lies in its folder."""
    names = ["model_index.json", *(f"{module}.py" for module in MODULES)]
    index = json.loads((folder / names[0]).read_text(encoding="utf-8"))
    for component in (*_saved_models(index), "scheduler"):
        for path in (folder / component).iterdir():
            if path.suffix in (".json", ".safetensors"):
                names.append(f"{component}/{path.name}")
    card = folder / "README.md"
    if with_card and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        shown = [path.name for path in folder.glob("*.png") if f"({path.name})" in text]
        names += [card.name, *shown]
    return names


def _send(
    folder: Path,
    repo_id: str,
    variant: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload LatentDiffusionPipeline",
    **kwargs: Any,
) -> str:
    """Send a saved pipeline in one commit; a card only where there is none."""
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    has_card = file_exists(repo_id, "README.md", revision=kwargs.get("revision"), token=token)
    if not has_card and not (folder / "README.md").exists():
        card = load_or_create_model_card(repo_id, token=token, is_pipeline=True)
        populate_model_card(card).save(folder / "README.md")
    sent = _sent_files(folder, with_card=not has_card)
    models = {name.partition("/")[0] for name in sent} & set(MODELS)
    old = [f"{model}/{x}" for model in sorted(models) for x in _weight_patterns(variant)]
    return str(
        upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            allow_patterns=[glob.escape(name) for name in sent],
            delete_patterns=old,
            token=token,
            **kwargs,
        )
    )
