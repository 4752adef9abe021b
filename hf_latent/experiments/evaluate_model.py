"""`hf-latent evaluate`: measure a model, and write the figures into its card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_latent.evaluation.evaluate import evaluate
from hf_latent.evaluation.evaluate_config import EvaluateConfig
from hf_latent.hub.card_pictures import copy_picture
from hf_latent.hub.model_card import CARD, write_model_card
from hf_latent.output import write_json

PICTURES = ("samples.png", "reconstructions.png", "closest_by_latents.png")


@dataclass(frozen=True, kw_only=True)
class EvaluateModelConfig(EvaluateConfig):
    """Measure a model: what its autoencoder keeps, how close its images come, whether it copies.

    Attributes:
        update_card: put metrics.json and the pictures into the folder of a local model too, and
            write its card anew; a card that was edited by hand is kept.
    """

    update_card: bool = True


def evaluate_model(config: EvaluateModelConfig) -> dict[str, Any]:
    """Measure a model and, where it is a local folder, tell the figures on its card.

    Args:
        config: the model, the data, and how much.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: for whatever the user can mend, in one line.
    """
    metrics = evaluate(config)
    model = Path(config.model)
    if config.update_card and model.is_dir():
        update_card(model, metrics, Path(config.output_dir))
    return metrics


def update_card(model: Path, metrics: dict[str, Any], pictures: Path) -> None:
    """Put what was measured into a model's folder, and write its card anew.

    Args:
        model: the folder of a pipeline.
        metrics: what was measured, with the hashes of the weights that it was measured of.
        pictures: the folder of those that the card shows, if they are there.

    Raises:
        UserError: if the model's other reports cannot be read.
    """
    for name in PICTURES:
        if (pictures / name).is_file():
            copy_picture(pictures / name, model / name)
    write_json(model / "metrics.json", metrics)
    if write_model_card(model):
        print(f"the figures are on the card, {model / CARD}")
    else:
        print(f"{model / CARD} was edited by hand and is kept; the figures are in metrics.json")
