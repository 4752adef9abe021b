"""`hf-latent evaluate`: measure a model, and write the figures into its card."""

from pathlib import Path
from typing import Any

from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.evaluate import evaluate
from hf_latent.hub.card.facts import PICTURES as REPORTS_OF
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.pictures import copy_picture
from hf_latent.hub.card.render import CARD, write_model_card
from hf_latent.models.load import find_released
from hf_latent.output import read_json, write_json

PICTURES = ("samples.png", "reconstructions.png", "closest_by_latents.png")


def evaluate_model(config: EvaluateConfig) -> dict[str, Any]:
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
    local = model.is_dir() and find_released(config.model) == config.model
    if config.update_card and config.guide is None and local:
        update_card(model, metrics, Path(config.output_dir))
    return metrics


def update_card(model: Path, metrics: dict[str, Any], pictures: Path) -> None:
    """Put what was measured into a model's folder, and write its card anew.

    Args:
        model: the folder of a pipeline.
        metrics: what was measured, with the hashes of the weights that it was measured of.
        pictures: the folder of those that the card shows, if they are there; those of an earlier
            evaluation go, and those of the training are kept where there is no newer one.

    Raises:
        UserError: if the model's other reports cannot be read.
    """
    earlier = _measured_before(model, metrics)
    write_json(model / "metrics.json", metrics)
    trained = read_model_facts(model).training
    for name in PICTURES:
        if (pictures / name).is_file():
            copy_picture(pictures / name, model / name)
        elif earlier or not trained or "training" not in REPORTS_OF[name]:
            (model / name).unlink(missing_ok=True)
    if write_model_card(model):
        print(f"the figures are on the card, {model / CARD}")
    else:
        print(f"{model / CARD} was edited by hand and is kept; the figures are in metrics.json")


def _measured_before(model: Path, metrics: dict[str, Any]) -> bool:
    """Tell whether these very weights were measured before: then the pictures are of that."""
    try:
        before = read_json(model / "metrics.json")
    except UserError:
        return False
    hashes = ("vae_weights_sha256", "unet_weights_sha256")
    return all(before.get(x) == metrics[x] for x in hashes)
