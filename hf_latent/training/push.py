"""A training's model on the Hub: what is made sure of before the training, and the push after."""

import shlex
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi

from hf_latent.errors import UserError
from hf_latent.hub.push import push
from hf_latent.hub.upload.config import PushConfig, check_repo_id
from hf_latent.hub.upload.model import refuse_other_model
from hf_latent.hub.upload.remote_files import RemoteFiles
from hf_latent.hub.upload.retry import insist
from hf_latent.hub.upload.upload import open_repository
from hf_latent.training.run.accelerator import TrainingConfig, together
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
    with together(accelerator):
        if accelerator.is_main_process:
            check_run_folder(config)
            destination = _destination(config)
            insist(partial(_open, destination, class_name), destination.repo_id)
            return destination
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
        raise UserError(
            f"the model is whole, in {destination.model}, but not on the Hub ({reason}); to push "
            f"it: {_command(destination)}"
        ) from None


def _destination(config: TrainingConfig) -> PushConfig:
    """Return where to push, with the account's name where the flag does not have one."""
    output_dir = Path(config.output_dir)
    name = config.hub_model_id
    if name is None:
        name = output_dir.absolute().name
        try:
            check_repo_id(name, "output_dir", account="user")
        except UserError:
            raise UserError(
                f"--output_dir {output_dir}: a repository on the Hub cannot be called {name!r}; "
                "name one with --hub_model_id"
            ) from None
    if "/" not in name:
        account = insist(lambda: HfApi(token=True).whoami()["name"], name)
        name = f"{account}/{name}"
    return PushConfig(
        model=str(output_dir / "model"), repo_id=name, private=config.hub_private_repo
    )


def _open(destination: PushConfig, class_name: str) -> None:
    """Make the repository, or make sure that it is the model's; insist repeats it."""
    api = HfApi(token=True)
    open_repository(api, destination, "model")
    repo = {"repo_id": destination.repo_id, "repo_type": "model"}
    refuse_other_model(destination.repo_id, RemoteFiles(api, repo, None), class_name)


def _command(destination: PushConfig) -> str:
    words = ["hf-latent", "push", "--model", destination.model, "--repo_id", destination.repo_id]
    return shlex.join([*map(str, words), *(["--private"] if destination.private else [])])
