"""The settings of `hf-latent push`."""

import re
from dataclasses import dataclass

from hf_latent.command import Settings
from hf_latent.errors import UserError

_REPO_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PushConfig(Settings):
    """Send a model or a latent cache, with its card, to the Hub.

    Attributes:
        model: The folder of a model: of a pipeline or of an autoencoder; or the folder of the run
            that it was trained in. Sent are its configurations, safetensors, code, card with its
            pictures and figures, nothing else.
        cache: The folder of a latent cache, in place of a model; it becomes a data set. Its shards
            and manifest.json are sent, nothing else.
        repo_id: The repository on the Hub, user/name. It is made if it is missing.
        private: Make a new repository private; refuse one that is there and public.
        revision: The branch to send to, made if it is missing, or a pull request as refs/pr/1. By
            default main.
        create_pr: Propose it as a pull request; the same command goes on in the same one.
        license: The licence of the model, or of the cache's images, as the Hub calls it, like mit
            or cc-by-4.0. By default the card goes on naming the one that it names on the Hub.
        overwrite_card: Replace a README.md that was edited on the Hub; otherwise it is kept.
        checkpoints: Send the checkpoints of the run along, for which `--model` is the run's folder.
            They name the run's settings, with paths of this machine. Those on the Hub of other
            steps stay there.
    """

    repo_id: str
    model: str | None = None
    cache: str | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    license: str | None = None
    overwrite_card: bool = False
    checkpoints: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the flag."""
        super().__post_init__()
        if (self.model is None) == (self.cache is None):
            raise UserError("pass what to send: either --model or --cache")
        check_repo_id(self.repo_id, "repo_id")
        if self.create_pr and self.revision:
            raise UserError("--create_pr makes a revision of its own: leave --revision out")
        if self.checkpoints and self.cache:
            raise UserError("--checkpoints go with a --model, not with a --cache")


def check_repo_id(name: str, flag: str, account: str | None = None) -> None:
    """Refuse a name that no repository on the Hub can have.

    Args:
        name: of the repository.
        flag: that gave it, for the message.
        account: accept a name without one, as if it were this account's.

    Raises:
        UserError: if it is not `user/name`.
    """
    whole = f"{account}/{name}" if account and "/" not in name else name
    if not _REPO_ID.fullmatch(whole) or "--" in whole or ".." in whole or whole.endswith(".git"):
        raise UserError(f"--{flag} {name} is not of the form user/name")
