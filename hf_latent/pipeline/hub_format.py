"""Saving, loading and pushing a pipeline, with its own code beside its weights."""

import fnmatch
import importlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from diffusers import AutoModel, DiffusionPipeline, ModelMixin
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    create_commit,
    create_repo,
    list_repo_files,
)
from huggingface_hub.utils import WeakFileLock

from .autoencoders import named_kind
from .conditions import has_prompts
from .denoise import choose_sampling
from .encode import check_image_channels
from .samplers import check_sampler, get_objective, load_scheduler
from .saved_files import (
    MODELS,
    MODULES,
    RETIRED_MODULES,
    add_code,
    pipeline_files,
    replace_files,
    saved_models,
    weight_patterns,
)
from .weights import check_weights, load_exactly, loading_options

HALF_SAVED = ".saving"  # the folder that a pipeline is saved to first
MINIMUM_DIFFUSERS = "0.42.1"  # older ones run code of a model that nobody was asked to trust
# The card of a model that is pushed where hf_latent, which makes a better one, is not installed.
SHORT_CARD = """---
library_name: diffusers
pipeline_tag: {task}
tags: [latent-diffusion, hf-latent, safetensors]
---

# {title}

A latent diffusion model. diffusers {diffusers} or newer loads it; nothing else has to be installed,
because the code comes with the model. Read the code before you trust it.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True, use_safetensors=True)
pipe({arguments}).images[0].save("sample.png")
```

- It names no licence: ask its owner before you use it.
"""
# The Hub's task of a model, and the arguments of a call, by whether it has prompts.
TASKS = {
    False: ("unconditional-image-generation", "num_images=1"),
    True: ("text-to-image", 'prompt="a picture"'),
}
# Settings that stay with the denoiser as this attribute of it, so that `components` brings them.
SETTINGS = "_pipeline_settings"
OF_DENOISER = ("objective", "num_inference_steps", "distilled")
KEPT = ("id2label", "guidance", "num_inference_steps", "distilled")


class HubFormat:
    """Saving and loading, for a `DiffusionPipeline` that is defined in `pipeline.py`.

    `model_index.json` names the class and its file, which lies beside it. Plain diffusers loads the
    folder with `trust_remote_code=True`; `from_pretrained` of the class itself runs no remote code.
    """

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Read a configuration; remove the name of the code file from the class's entry."""
        config = super()._dict_from_json_file(json_file)  # type: ignore[misc]
        name = config.get("_class_name")
        if isinstance(name, list) and name[-1] in [ours.__name__ for ours in cls.__mro__]:
            # Otherwise diffusers asks to trust that file, which is not run.
            config["_class_name"] = name[-1]
        return config

    def register_to_config(self, **settings: Any) -> None:
        """Set settings, and check those of `KEPT`, which stay with the denoiser too.

        So `LatentDiffusionPipeline(**pipeline.components)` keeps them.

        Raises:
            ValueError: if they do not fit, see `denoise.choose_sampling`.
        """
        super().register_to_config(**settings)  # type: ignore[misc]
        unet = vars(self).get("unet")
        if unet is not None and not settings.keys().isdisjoint(KEPT):
            choose_sampling(self, True)
            setattr(unet, SETTINGS, {name: self.config.get(name) for name in KEPT})  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """Load a saved pipeline, as `DiffusionPipeline.from_pretrained`, from safetensors only.

        Args:
            pretrained_model_name_or_path: a folder or Hub id; where hf_latent is installed also the
                name of a released model, or the folder of the run that trained a model.
            **kwargs: of `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `revision`,
                `token`, `local_files_only`, components that replace saved ones, and others. If
                `unet` is given, the scheduler determines the objective, and the number of steps
                and `distilled` are those of that denoiser's last pipeline.

        Raises:
            ValueError: if weights are missing, not finite or left over (left over ones are ignored
                with `device_map` or `quantization_config`), or a released model gets one of these.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("weights are read from safetensors only: leave use_safetensors unset")
        find_model = _installed("models.load", "find_model") or str
        name = find_model(os.fspath(pretrained_model_name_or_path))
        folder = name if os.path.isdir(name) else str(cls.download(name, **kwargs))  # type: ignore[attr-defined]
        trained = None  # the saved scheduler, if another one replaces it
        if kwargs.get("unet") is not None:
            kwargs = dict.fromkeys(OF_DENOISER) | kwargs
        elif kwargs.get("scheduler") is not None:
            trained = load_scheduler(folder)
            kwargs.setdefault("objective", get_objective(trained))  # older models lack it
        if kwargs.get("vae") is not None:
            saved = AutoModel.load_config(folder, subfolder="vae")
            channels = named_kind(saved["_class_name"]).image_channels(saved)
            check_image_channels(kwargs["vae"], channels)
        find_component = _installed("models.load", "find_component") or (lambda *place: place)
        is_whole = not {"device_map", "quantization_config"} & kwargs.keys()
        for component in saved_models(cls.load_config(folder)):  # type: ignore[attr-defined]
            place = find_component(folder, component)
            if place[0] != folder and not is_whole:
                raise ValueError(f"{name} is small: leave out device_map and quantization_config")
            if component not in kwargs and is_whole:
                options = loading_options(folder, component, kwargs)
                if component == "text_encoder" and place[0] != folder:
                    options["config"] = str(Path(folder, component))  # with its own settings
                kwargs[component] = load_exactly(*place, **options)
        pipeline = super().from_pretrained(folder, **kwargs)  # type: ignore[misc]
        if trained is not None:
            pipeline.trained_scheduler = trained
        if name != folder:
            pipeline.register_to_config(_name_or_path=name)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Create a pipeline from another one's components, as `DiffusionPipeline.from_pipe`.

        Args:
            pipeline: its denoiser was trained with its `trained_scheduler`, if it has one.
            **kwargs: settings, and components that replace its own; `unet` as of `from_pretrained`.

        Raises:
            ValueError: if the scheduler is not for the denoiser's objective.
        """
        if "unet" in kwargs:
            kwargs = dict.fromkeys(OF_DENOISER) | kwargs
        if getattr(pipeline, "vae", None) is not None:
            kwargs.setdefault("vae", pipeline.vae)  # diffusers compares classes and drops it
        created = super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]
        if "unet" not in kwargs and hasattr(pipeline, "trained_scheduler"):
            created.trained_scheduler = pipeline.trained_scheduler
        return created

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the pipeline and its code to a folder.

        Args:
            save_directory: files of the same names are replaced, others stay.
            safe_serialization: only True, for safetensors.
            variant: a name for these weights beside others, like `fp16`.
            max_shard_size: larger weights are split into files of this size, like `"5GB"`.
            push_to_hub: also push the folder to the Hub.
            **kwargs: of `push_to_hub`; `repo_id` is the folder's name by default.

        Raises:
            ValueError: if `safe_serialization` is False, a component was not loaded, weights are
                not finite, or scheduler, guide or guidance do not fit the denoiser.
        """
        for component in ("vae", "unet"):
            self.require(component)  # type: ignore[attr-defined]
        if has_prompts(self.unet):  # type: ignore[attr-defined]
            self.require("text_encoder")  # type: ignore[attr-defined]
        check_sampler(self.trained_scheduler, self.scheduler)  # type: ignore[attr-defined]
        choose_sampling(self, True)
        if not safe_serialization:
            raise ValueError(
                "weights are written as safetensors only: leave safe_serialization True"
            )
        folder = Path(save_directory)
        # diffusers does not notice a component that was None and is set later.
        self.register_modules(guide_unet=self.guide_unet)  # type: ignore[attr-defined]
        models = saved_models(self.config)  # type: ignore[attr-defined]
        for component in models:
            check_weights(component, getattr(self, component))
        own = [x for x in (*models, "scheduler") if x != "text_encoder"]  # transformers saves none
        for part in (getattr(self, component) for component in own):
            source = part.config.get("_name_or_path") or ""
            if os.path.isabs(source) or os.path.isdir(source):
                part.register_to_config(_name_or_path="")  # a local path
        new, lock = folder / HALF_SAVED, folder / f"{HALF_SAVED}.lock"
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # another process may save to this folder, too
            shutil.rmtree(new, ignore_errors=True)  # left by a killed process
            new.mkdir()
            try:
                super().save_pretrained(new, variant=variant, max_shard_size=max_shard_size)  # type: ignore[misc]
                # A class derived elsewhere is not defined in these files.
                if type(self).__module__ == f"{__name__.rpartition('.')[0]}.{MODULES[0]}":
                    add_code(new, type(self).__name__)
                replace_files(new, folder, variant)
            finally:
                shutil.rmtree(new)
                lock.unlink(missing_ok=True)
        if push_to_hub:
            kwargs.setdefault("repo_id", folder.absolute().name)
            _push(folder, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> str:
        """Push the pipeline and its card to a repository on the Hub; an existing card there stays.

        Args:
            repo_id: `user/name`; a missing repository is created.
            safe_serialization: only True, for safetensors.
            variant: as of `save_pretrained`.
            max_shard_size: as of `save_pretrained`.
            **kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message`.

        Returns:
            The commit's URL.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size)
            return _push(Path(folder), repo_id, variant, **kwargs)


def kept_settings(unet: ModelMixin | None, *given: Any) -> dict[str, Any]:
    """Return the settings of `KEPT`; None becomes what the denoiser's earlier pipeline had."""
    kept = getattr(unet, SETTINGS, {})
    return {k: kept.get(k) if x is None else x for k, x in zip(KEPT, given, strict=True)}


def _push(
    folder: Path,
    repo_id: str,
    variant: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload LatentDiffusionPipeline",
    **kwargs: Any,
) -> str:
    """Push a saved pipeline, and a card if the repository has none, in one commit.

    `upload_folder` splits a large model into several commits; the first ones may look complete.
    """
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    remote = list_repo_files(repo_id, revision=kwargs.get("revision"), token=token)
    has_card = "README.md" in remote
    if not has_card:
        _write_card(folder, repo_id)
    sent = pipeline_files(folder, with_card=not has_card)
    models = {name.partition("/")[0] for name in sent} & set(MODELS)
    old = [f"{model}/{x}" for model in models for x in weight_patterns(model, variant)]
    old += [f"{module}.py" for module in RETIRED_MODULES]
    stale = {name for pattern in old for name in fnmatch.filter(remote, pattern)} - set(sent)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationDelete(name) for name in sorted(stale)),
        *(CommitOperationAdd(name, folder / name) for name in sent),
    ]
    return str(
        create_commit(repo_id, operations, commit_message=commit_message, token=token, **kwargs)
    )


def _write_card(folder: Path, repo_id: str) -> None:
    """Write the card of a saved pipeline, but keep one that was edited."""
    if write_model_card := _installed("hub.card.render", "write_model_card"):
        write_model_card(folder, repo_id)
    elif not (folder / "README.md").exists():
        title = repo_id.rpartition("/")[2]
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        words = "text_encoder" in saved_models(index)
        task, arguments = TASKS[words]
        about = {"title": title, "repo_id": repo_id, "task": task, "arguments": arguments}
        card = SHORT_CARD.format(diffusers=MINIMUM_DIFFUSERS, **about)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _installed(module: str, name: str) -> Any:
    """Return a function of hf_latent, or None if it is not installed, or without that function.

    These files also work alone, or beside another version than theirs.
    """
    try:
        return getattr(importlib.import_module(f"hf_latent.{module}"), name, None)
    except ImportError:
        return None
