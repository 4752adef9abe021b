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
from hf_latent.lock import locks_output
from hf_latent.models.load import find_model, is_own
from hf_latent.output import read_json, write_json

PICTURES = ("samples.png", "reconstructions.png", "closest_by_latents.png")


@locks_output
def evaluate_model(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a model and, if it is a local folder, update its card.

    Args:
        config: the model, the data and the number of images.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: if the model or the data cannot be used.
    """
    metrics = evaluate(config)
    if config.update_card and config.guide is None and is_own(config.model):
        update_card(Path(find_model(config.model)), metrics, Path(config.output_dir))
    return metrics


def update_card(model: Path, metrics: dict[str, Any], pictures: Path) -> None:
    """Write figures and pictures into a model's folder, and render its card.

    Pictures of an earlier evaluation are removed. Pictures of the training stay if there are no
    newer ones.

    Args:
        model: the folder of a pipeline.
        metrics: the figures, with the hashes of the measured weights.
        pictures: the folder of the new pictures; each may be missing.

    Raises:
        UserError: if the model's other reports cannot be read.
    """
    measured_before = _has_figures_of(model, metrics)
    write_json(model / "metrics.json", metrics)
    trained = read_model_facts(model).training
    for name in PICTURES:
        if (pictures / name).is_file():
            copy_picture(pictures / name, model / name)
        elif measured_before or not trained or "training" not in REPORTS_OF[name]:
            (model / name).unlink(missing_ok=True)
    if write_model_card(model):
        print(f"the figures are on the card, {model / CARD}")
    else:
        print(f"{model / CARD} was edited by hand and is kept; the figures are in metrics.json")


def _has_figures_of(model: Path, metrics: dict[str, Any]) -> bool:
    """Return whether the folder's metrics.json has figures of the same weights."""
    try:
        before = read_json(model / "metrics.json")
    except UserError:
        return False
    hashes = ("vae_weights_sha256", "unet_weights_sha256")
    return all(before.get(x) == metrics[x] for x in hashes)
