"""Release a measured model: copy it and its reports into the package, and write its card.

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
from hf_latent.hub.card.weights import read_saved_weights
from hf_latent.hub.model_files import CODE, MODEL_FILES, is_file, model_files
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import MINILM, PRETRAINED, find_text_encoder
from hf_latent.output import read_json, replaced_whole, write_json
from hf_latent.pipeline.weights import load_exactly
from released_card import write_released_card

# Of an autoencoder's configuration; they may differ where the package keeps it once.
UNSHARED_ENTRIES = ("_name_or_path", "_diffusers_version")


@dataclass(frozen=True, kw_only=True)
class ReleasePipelineConfig(Settings):
    """Release a trained and evaluated model.

    Attributes:
        model: The model's folder, with training.json and the metrics.json of hf-latent evaluate.
        about: YAML with name and license, and optionally summary, datasets, data_name, data_text
            and limits_text.
        pretrained_dir: The model, its reports and pictures go to a subfolder with its name.
        cards_dir: The card and its pictures go to a subfolder with its name.
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
    load_pipeline(config.model)  # raises an error if weights are missing or damaged
    metrics = read_json(model / "metrics.json")
    metrics |= about | {"load_from": f"hf_latent/models/pretrained/{about['name']}"}
    with replaced_whole(model_dir, written=MODEL_FILES) as temporary:
        _copy_without_code(model, temporary)
        write_json(temporary / "metrics.json", metrics)
    write_released_card(model_dir, Path(config.cards_dir) / about["name"])
    return metrics


def _copy_without_code(model: Path, folder: Path) -> None:
    """Copy what the package lacks of a saved pipeline and its pictures, in its dtype.

    The package has the code, and perhaps the autoencoder and the text encoder: see
    `find_component`.
    """
    entry, class_name, names = model_files(model)
    pictures = [name for name in PICTURES if is_file(model / name)]
    shared: dict[str, str] = {}
    if folder.resolve().parent == PRETRAINED:
        found = {"vae": _find_shared(model / "vae"), "text_encoder": _find_text_encoder(model)}
        shared = {component: name for component, name in found.items() if name}
    for name in (*(name for name in names if name not in CODE), *pictures):
        component, _, file = name.partition("/")
        if component in shared and file != "config.json":
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, folder / name)
    for component, name in shared.items():
        config = folder / component / "config.json"
        write_json(config, read_json(config) | {"_name_or_path": name})
    write_json(folder / entry, read_json(model / entry) | {"_class_name": class_name})


def _find_shared(vae: Path) -> str | None:
    """Return the name of the released autoencoder with this one's weights and settings, if any."""

    def content(folder: Path) -> tuple[str, dict[str, Any]]:
        config = read_json(folder / "config.json")
        settings = {key: x for key, x in config.items() if key not in UNSHARED_ENTRIES}
        return read_saved_weights(folder).sha256, settings

    released = [x for x in sorted(PRETRAINED.iterdir()) if (x / "config.json").is_file()]
    return next((x.name for x in released if content(x) == content(vae)), None)


def _find_text_encoder(model: Path) -> str | None:
    """Return the name of the text encoder that a package has, if it is the model's."""
    if not (model / "text_encoder").is_dir():
        return None
    saved = load_exactly(str(model), "text_encoder")
    known = load_exactly(find_text_encoder(MINILM))
    return MINILM if hash_weights(saved) == hash_weights(known) else None


if __name__ == "__main__":
    run_command(ReleasePipelineConfig, release_pipeline)
