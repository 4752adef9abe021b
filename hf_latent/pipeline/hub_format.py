"""How a pipeline is saved, so that it loads anywhere: with its own code beside its weights."""

import glob
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import create_repo, file_exists, upload_folder

from .denoise import check_guide
from .exact_weights import load_exactly
from .guidance import check_guidance
from .samplers import check_sampler, get_objective, load_scheduler
from .saved_files import (
    MODELS,
    MODULES,
    add_code,
    replace_files,
    saved_models,
    sent_files,
    weight_patterns,
)

HALF_SAVED = ".saving-"  # how the folder begins in which a pipeline is saved, before it is whole


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
                `token`, `local_files_only`, components that replace saved ones, and others. With a
                `unet` of one's own the scheduler says the objective.

        Raises:
            ValueError: if weights are missing, or there are others than the models have (the latter
                is not looked for with `device_map` or `quantization_config`).
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("weights are read from safetensors only: leave use_safetensors out")
        name = os.fspath(pretrained_model_name_or_path)
        folder = name if os.path.isdir(name) else str(cls.download(name, **kwargs))  # type: ignore[attr-defined]
        trained = None  # of a scheduler that is given in place of it
        if kwargs.get("unet") is not None:
            kwargs.setdefault("objective", None)
        elif kwargs.get("scheduler") is not None:
            trained = load_scheduler(folder)
            kwargs.setdefault("objective", get_objective(trained))  # older models do not say it
        if not {"device_map", "quantization_config"} & kwargs.keys():
            for component in saved_models(cls.load_config(folder)):  # type: ignore[attr-defined]
                if component not in kwargs:
                    options = _loading_options(folder, component, kwargs)
                    kwargs[component] = load_exactly(folder, component, **options)
        pipeline = super().from_pretrained(folder, **kwargs)  # type: ignore[misc]
        if trained is not None:
            pipeline.trained_scheduler = trained
        if name != folder:
            pipeline.register_to_config(_name_or_path=name)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Make a pipeline of another one's components, as `DiffusionPipeline.from_pipe`.

        Args:
            pipeline: whose denoiser was trained as its `trained_scheduler` says, where it has one.
            **kwargs: components that replace its own, and settings. With another `unet` the
                scheduler says the objective.

        Raises:
            ValueError: if the scheduler is not for the denoiser's objective.
        """
        if "unet" in kwargs:
            kwargs.setdefault("objective", None)
        made = super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]
        if "unet" not in kwargs and hasattr(pipeline, "trained_scheduler"):
            made.trained_scheduler = pipeline.trained_scheduler
        return made

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
        models = saved_models(self.config)  # type: ignore[attr-defined]
        for part in (getattr(self, component) for component in (*models, "scheduler")):
            source = part.config.get("_name_or_path") or ""
            if os.path.isabs(source) or os.path.isdir(source):
                part.register_to_config(_name_or_path="")  # no path of this machine in the files
        folder.mkdir(parents=True, exist_ok=True)
        for remains in folder.glob(f"{HALF_SAVED}*"):
            shutil.rmtree(remains)  # of a killed process
        with tempfile.TemporaryDirectory(prefix=HALF_SAVED, dir=folder) as new:
            super().save_pretrained(new, variant=variant, max_shard_size=max_shard_size)  # type: ignore[misc]
            # A class that was derived elsewhere is not in these files.
            if type(self).__module__ == f"{__name__.rpartition('.')[0]}.{MODULES[0]}":
                add_code(Path(new), type(self).__name__)
            replace_files(Path(new), folder, variant)
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
    sent = sent_files(folder, with_card=not has_card)
    models = {name.partition("/")[0] for name in sent} & set(MODELS)
    old = [f"{model}/{x}" for model in sorted(models) for x in weight_patterns(variant)]
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
