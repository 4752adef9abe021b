"""The last line of a card that was written here: it shows whether the card was edited since."""

import hashlib
import re

_SIGNATURE = re.compile(r"\n<!-- Written by hf-latent[^>]* sha256 ([0-9a-f]{64}) -->\n?\Z")


def sign(card: str) -> str:
    """Put a comment with the hash of a card at its end.

    Args:
        card: metadata as YAML, then Markdown.

    Returns:
        The card with that line, which Markdown does not show.
    """
    text = card.rstrip() + "\n"
    about = "(a card that is edited is kept), sha256"
    return f"{text}\n<!-- Written by hf-latent {about} {_digest(text)} -->\n"


def is_unedited(card: str) -> bool:
    """Return whether a card is as `sign` once left it.

    Args:
        card: the whole text of a README.md.

    Returns:
        False too for a card that was never signed.
    """
    card = card.replace("\r\n", "\n")
    found = _SIGNATURE.search(card)
    return found is not None and found[1] == _digest(card[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
