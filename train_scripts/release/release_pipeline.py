"""Release a measured model: copy its weights into the package, and write its card.

    python train_scripts/release/release_pipeline.py --model MODEL --about CARD.yaml

The card is made of the model's reports and of a few texts; nothing is measured here.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_latent.command import Settings, run_command
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.hub.card.facts import PICTURES, read_model_facts
from hf_latent.hub.card.render import CARD, render_model_card
from hf_latent.hub.model_files import MODEL_FILES, model_files
from hf_latent.output import read_json, replaced_whole, write_json, write_text

REPORTS = ("training.json", "config.yaml")


@dataclass(frozen=True, kw_only=True)
class ReleasePipelineConfig(Settings):
    """Release a trained and evaluated model.

    Attributes:
        model: The model's folder, with training.json and the metrics.json of hf-latent evaluate.
        about: YAML with name and license, and optionally summary, datasets, data_name, data_text
            and limits_text.
        pretrained_dir: The model goes to a subfolder with its name.
        cards_dir: The card, its pictures and reports go to a subfolder with its name.
    """

    model: str
    about: str
    pretrained_dir: str = "hf_latent/models/pretrained"
    cards_dir: str = "model_cards"


def release_pipeline(config: ReleasePipelineConfig) -> dict[str, Any]:
    """Copy a model into the package, and write its card.

    Args:
        config: the model and the card's texts.

    Returns:
        The content of the release's metrics.json.

    Raises:
        UserError: if the model or a report of it is missing.
    """
    model = Path(config.model)
    facts = read_model_facts(model)
    if not facts.training or "fd" not in facts.metrics:
        raise UserError(
            f"{model} lacks the training.json or the metrics.json of these weights: train it, and "
            "run hf-latent evaluate"
        )
    about = yaml.safe_load(Path(config.about).read_text(encoding="utf-8"))
    model_dir = Path(config.pretrained_dir) / about["name"]
    card_dir = Path(config.cards_dir) / about["name"]
    card_dir.mkdir(parents=True, exist_ok=True)
    load_pipeline(config.model)  # raises an error if weights are missing or damaged
    with replaced_whole(model_dir, written=MODEL_FILES) as temporary:
        _copy_without_code(model, temporary)
    for name in (*REPORTS, *PICTURES):
        if (model / name).is_file():
            shutil.copyfile(model / name, card_dir / name)
    metrics = read_json(model / "metrics.json")
    metrics |= about | {"load_from": f"hf_latent/models/pretrained/{about['name']}"}
    write_json(card_dir / "metrics.json", metrics)
    card = render_model_card(model_dir, license=about["license"], reports=card_dir)
    write_text(card_dir / CARD, card)
    return metrics


def _copy_without_code(model: Path, folder: Path) -> None:
    """Copy a saved pipeline's components and index in their dtype; the package has its code."""
    entry, class_name, names = model_files(model)
    for name in (name for name in names if "/" in name):  # components
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, folder / name)
    write_json(folder / entry, read_json(model / entry) | {"_class_name": class_name})


if __name__ == "__main__":
    run_command(ReleasePipelineConfig, release_pipeline)
