"""Push a training's model to the Hub: checks before the training, and the push after it."""

import shlex
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi

from hf_latent.errors import UserError
from hf_latent.hub.contents import check_remote_class
from hf_latent.hub.push import PushConfig, push
from hf_latent.hub.remote import RemoteFiles, check_repo_id, open_repository, retry
from hf_latent.training.run.accelerator import TrainingConfig, raise_everywhere
from hf_latent.training.run.folder import check_run_folder


def prepare_push(
    config: TrainingConfig, class_name: str, accelerator: Accelerator
) -> PushConfig | None:
    """Check that the trained model can be pushed; all processes must call this.

    Creates the repository if it is missing: only that shows that the token may write. The run
    folder is checked first, so that a rejected folder leaves no empty repository.

    Args:
        class_name: of the trained model.
        accelerator: the run's; its main process asks the Hub.

    Returns:
        The settings for `push_model`; None without `--push_to_hub`, and on other processes.

    Raises:
        UserError: if the run folder is rejected, the token is missing or may not write, the
            repository has another kind of model or is public despite `--hub_private_repo`, or the
            Hub cannot be reached.
    """
    if not config.push_to_hub:
        return None
    with raise_everywhere(accelerator):
        if accelerator.is_main_process:
            check_run_folder(config)
            repo_id, private = _repo_id(config), config.hub_private_repo
            retry(partial(_open_repository, repo_id, private, class_name), repo_id)
            model = Path(config.output_dir, "model")
            return PushConfig(model=str(model), repo_id=repo_id, private=private)
    return None


def push_model(settings: PushConfig | None) -> None:
    """Push a trained model. This is a training's last step: other processes do not wait for it.

    Args:
        settings: from `prepare_push`.

    Raises:
        UserError: if the push fails; it names the saved model and the command that pushes it.
    """
    if settings is None:
        return
    try:
        push(settings)
    except (UserError, OSError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        words = ["hf-latent", "push", "--model", str(settings.model)]
        words += ["--repo_id", settings.repo_id, *["--private"] * settings.private]
        raise UserError(
            f"the model is saved in {settings.model}, but not on the Hub ({reason}); to push "
            f"it: {shlex.join(words)}"
        ) from None


def _repo_id(config: TrainingConfig) -> str:
    """Return `user/name`; by default the account and the run folder's name."""
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
    return f"{retry(lambda: HfApi(token=True).whoami()['name'], name)}/{name}"


def _open_repository(repo_id: str, private: bool, class_name: str) -> None:
    """Create the repository, or check that it is for this kind of model."""
    api, repo = HfApi(token=True), {"repo_id": repo_id, "repo_type": "model"}
    open_repository(api, **repo, private=private)
    check_remote_class(repo_id, RemoteFiles(api, repo, "main"), class_name)
