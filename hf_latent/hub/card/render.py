"""The card of a saved model, made from what lies in its folder; what is not there is left out."""

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_latent.errors import UserError
from hf_latent.hub.card.autoencoder import autoencoder_texts
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.pipeline import pipeline_texts
from hf_latent.hub.card.results import GENERATION, RECONSTRUCTION
from hf_latent.hub.card.signature import is_unedited, sign
from hf_latent.hub.card.text import one_line, size_text
from hf_latent.hub.card.training import hub_id
from hf_latent.output import write_text

CARD = "README.md"
PLACEHOLDER = "path/to/model"
_TEXTS = {"pipeline": pipeline_texts, "autoencoder": autoencoder_texts}
_TEMPLATES = {kind: Path(__file__).with_name(f"{kind}_card.md") for kind in _TEXTS}
_TASKS = {"pipeline": GENERATION, "autoencoder": RECONSTRUCTION}
_SOURCE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # safe to paste into code
_LOADED = re.compile(r'from_pretrained\("(\w[\w.-]*/\w[\w.-]*)"', re.ASCII)
_PICTURE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)>\s]+)[^)]*\)")


def render_model_card(
    folder: Path,
    repo_id: str | None = None,
    license: str | None = None,
    reports: Path | None = None,
) -> str:
    """Write a model's card.

    Args:
        folder: of a pipeline or an autoencoder, with the reports about it.
        repo_id: of the model on the Hub, which the examples name; None: what the unedited card
            there names, else a placeholder.
        license: of the model, as the Hub calls it; None: what the card there names, if it does.
        reports: where the reports and pictures are; None: in the same folder.

    Returns:
        The card: metadata as YAML, then Markdown, then its signature.

    Raises:
        UserError: if there is no model, a report cannot be read, or the name is none of the Hub.
    """
    facts = read_model_facts(folder, reports)
    kept_license, kept_repo_id = _kept(Path(reports or folder) / CARD)
    repo_id = repo_id or kept_repo_id
    if repo_id:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise UserError(f"{repo_id} is no name of a model on the Hub ({error})") from error
    source = repo_id or _source(facts.metrics)
    texts, results = _TEXTS[facts.kind](facts, source)
    name = repo_id.rpartition("/")[2] if repo_id else one_line(texts["name"])
    data_id = hub_id(facts.training.get("data"))
    card_data = huggingface_hub.ModelCardData(
        license=license or kept_license or facts.metrics.get("license"),
        library_name="diffusers",
        pipeline_tag=_TASKS[facts.kind][0],
        tags=[*texts["tags"], "latent-diffusion", "hf-latent", "safetensors"],
        datasets=facts.metrics.get("datasets") or ([data_id] if data_id else None),
        model_name=name if results else None,
        eval_results=results or None,
    )
    card = huggingface_hub.ModelCard.from_template(
        card_data, template_path=str(_TEMPLATES[facts.kind]), size=size_text, **texts
    )
    return sign(str(card))


def write_model_card(
    folder: Path,
    repo_id: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> bool:
    """Write a model's card into its folder, unless the one there was edited.

    Args:
        folder: as of `render_model_card`.
        repo_id: as of `render_model_card`.
        license: as of `render_model_card`.
        overwrite: replace an edited card too.

    Returns:
        False if the card there was edited by hand, and is kept.

    Raises:
        UserError: as of `render_model_card`.
    """
    path = Path(folder) / CARD
    if not overwrite and path.is_file() and not is_unedited(_read(path)):
        return False
    write_text(path, render_model_card(Path(folder), repo_id, license))
    return True


def card_pictures(card: str) -> list[str]:
    """Return the local pictures that a card shows.

    Args:
        card: the whole text of a README.md.

    Returns:
        Their file names, each once. What lies elsewhere, in the Internet or in another folder, is
        not among them.
    """
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", card, flags=re.DOTALL | re.MULTILINE)
    names = [unquote(target) for target in _PICTURE.findall(text)]
    return [name for name in dict.fromkeys(names) if _is_file_name(name)]


def _is_file_name(name: str) -> bool:
    plain_name = PurePosixPath(name).name == name and not set(name) & set(":\\\0")
    return plain_name and not name.startswith(".")


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def _kept(path: Path) -> tuple[str | None, str | None]:
    """Return the licence and the repository's name that an unedited card has."""
    text = _read(path) if path.is_file() else ""
    if not is_unedited(text):
        return None, None
    found = _LOADED.search(text)
    license = huggingface_hub.ModelCard(text).data.to_dict().get("license")
    return license, found and found[1]


def _source(known: dict[str, Any]) -> str:
    """Return what the examples load, where the model is not on the Hub."""
    source = str(known.get("load_from", PLACEHOLDER))
    return source if _SOURCE.fullmatch(source) else PLACEHOLDER
