"""The card of a released model, where readers look for it: `model_cards/NAME`."""

import shutil
from pathlib import Path

from hf_latent.hub.card.render import CARD, card_pictures, render_model_card
from hf_latent.output import write_text


def write_released_card(model_dir: Path, card_dir: Path) -> None:
    """Write the card of a released model, with copies of its pictures.

    Args:
        model_dir: the model in the package, with its reports and pictures.
        card_dir: is created if it is missing.
    """
    card_dir.mkdir(parents=True, exist_ok=True)
    card = render_model_card(model_dir)
    for name in card_pictures(card):
        shutil.copyfile(model_dir / name, card_dir / name)
    write_text(card_dir / CARD, card)
