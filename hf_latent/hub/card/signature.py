"""The last line of a card that this package wrote: it shows whether the card was edited since."""

import hashlib
import re

_SIGNATURE = re.compile(r"\n<!-- Written by hf-latent[^>]* sha256 ([0-9a-f]{64}) -->\n?\Z")


def sign(card: str) -> str:
    """Return a card with its hash in a comment at the end, which Markdown does not show."""
    text = card.rstrip() + "\n"
    comment = "Written by hf-latent (an edited card is kept), sha256"
    return f"{text}\n<!-- {comment} {_digest(text)} -->\n"


def is_unedited(card: str) -> bool:
    """Return whether a README.md has a signature, of any version, that fits its text."""
    card = card.replace("\r\n", "\n")
    found = _SIGNATURE.search(card)
    return found is not None and found[1] == _digest(card[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
