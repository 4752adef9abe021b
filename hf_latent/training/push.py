"""A training's model on the Hub: what is made sure of before the training, and the push after."""

import shlex
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi

from hf_latent.errors import UserError
from hf_latent.hub.contents import refuse_other_model
from hf_latent.hub.push import PushConfig, push
from hf_latent.hub.remote import RemoteFiles, check_repo_id, insist, open_repository
from hf_latent.training.run.accelerator import TrainingConfig, raise_everywhere
from hf_latent.training.run.folder import check_run_folder


def open_hub_model(
    config: TrainingConfig, class_name: str, accelerator: Accelerator
) -> PushConfig | None:
    """Make sure that a training's model can be pushed; all processes call it.

    The repository is made, if it is missing: nothing else shows as surely that the token may. The
    run's folder is looked at before, so that one that is refused leaves no empty repository.

    Args:
        config: the run's.
        class_name: of the model that it trains.
        accelerator: its first process asks the Hub.

    Returns:
        What `push_model` takes; None without `--push_to_hub`, and on the other processes.

    Raises:
        UserError: if the run's folder may not be written, there is no token, it may not write,
            the repository holds another kind of model or is public against `--hub_private_repo`,
            or the Hub cannot be reached.
    """
    if not config.push_to_hub:
        return None
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            overwrite, resume = config.overwrite_output_dir, config.resume_from_checkpoint
            check_run_folder(Path(config.output_dir), overwrite, resume)
            repo_id, private = _repo_id(config), config.hub_private_repo
            insist(partial(_open_repository, repo_id, private, class_name), repo_id)
            model = Path(config.output_dir, "model")
            return PushConfig(model=str(model), repo_id=repo_id, private=private)
    return None


def push_model(destination: PushConfig | None) -> None:
    """Push a trained model, after everything else: the other processes do not wait for it.

    Args:
        destination: of `open_hub_model`.

    Raises:
        UserError: if that fails; it says where the model lies, and how to push it.
    """
    if destination is None:
        return
    try:
        push(destination)
    except (UserError, OSError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        words = ["hf-latent", "push", "--model", str(destination.model)]
        words += ["--repo_id", destination.repo_id, *["--private"] * destination.private]
        raise UserError(
            f"the model is whole, in {destination.model}, but not on the Hub ({reason}); to push "
            f"it: {shlex.join(words)}"
        ) from None


def _repo_id(config: TrainingConfig) -> str:
    """Return the repository's name, with the account's where the flag has none."""
    name = config.hub_model_id
    if name is None:
        name = Path(config.output_dir).absolute().name
        try:
            check_repo_id(name, "output_dir", account="user")
        except UserError:
            raise UserError(
                f"--output_dir {config.output_dir}: a repository on the Hub cannot be called "
                f"{name!r}; name one with --hub_model_id"
            ) from None
    if "/" in name:
        return name
    return f"{insist(lambda: HfApi(token=True).whoami()['name'], name)}/{name}"


def _open_repository(repo_id: str, private: bool, class_name: str) -> None:
    """Make the repository, or make sure that it is the model's; it may be repeated."""
    api, repo = HfApi(token=True), {"repo_id": repo_id, "repo_type": "model"}
    open_repository(api, **repo, private=private)
    refuse_other_model(repo_id, RemoteFiles(api, repo, "main"), class_name)
