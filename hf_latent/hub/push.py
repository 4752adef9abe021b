"""Send a model or a latent cache, with its card, to the Hub: `hf-latent push`."""

import sys
from pathlib import Path

from hf_latent.hub.upload.cache import CacheContents
from hf_latent.hub.upload.config import PushConfig
from hf_latent.hub.upload.model import ModelContents
from hf_latent.hub.upload.retry import insist
from hf_latent.hub.upload.upload import Upload


def push(config: PushConfig) -> str:
    """Make sure that a model or cache is whole, send what the Hub lacks of it, print the address.

    Args:
        config: what to send, and where.

    Returns:
        The address of the repository, of the branch or of the pull request.

    Raises:
        UserError: if it is not whole, or the Hub cannot be reached or refuses.
    """
    contents: ModelContents | CacheContents
    if config.model is not None:
        contents = ModelContents(Path(config.model), config)
        if contents.left_out:
            print(f"not sent, as no part of a model: {contents.left_out}", file=sys.stderr)
    else:
        contents = CacheContents(Path(config.cache or ""), config.repo_id)
    upload = Upload(config, contents)
    insist(upload.prepare, config.repo_id)
    while insist(upload.send_next, config.repo_id):
        pass
    if upload.card_is_kept:
        print(
            f"the README.md of {config.repo_id} was edited and is kept; "
            "--overwrite_card true replaces it",
            file=sys.stderr,
        )
    print(f"{contents}, {'sent' if upload.sent else 'already there'}: {upload.url()}")
    return upload.url()
