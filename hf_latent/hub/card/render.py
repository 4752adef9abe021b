"""Cards, made from the facts of a model's folder by the templates beside this file."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import jinja2
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_latent.errors import UserError
from hf_latent.hub.card import text
from hf_latent.hub.card.facts import hub_id, read_model_facts
from hf_latent.hub.card.results import (
    FROM_PROMPTS,
    GENERATION,
    RECONSTRUCTION,
    eval_results,
    model_figures,
    reconstruction_figures,
)
from hf_latent.hub.card.signature import is_unedited, sign
from hf_latent.models.load import released_models
from hf_latent.output import write_text
from hf_latent.pipeline.autoencoders import KINDS
from hf_latent.pipeline.denoise import DEFAULT_GUIDANCE_SCALE
from hf_latent.pipeline.hub_format import MINIMUM_DIFFUSERS

CARD = "README.md"
PLACEHOLDER = "path/to/model"
_SOURCE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # safe to paste into code
_LOADED = re.compile(r'from_pretrained\(\s*"(\w[\w.-]*/\w[\w.-]*)"', re.ASCII)
_IMAGE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)>\s]+)[^)]*\)")
_PICTURE = re.compile(r"\w[\w.-]*\.png", re.ASCII)
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # marks a macro's result, so that it is not escaped again
    finalize=text.plain,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {
    "code_block": text.code_block,
    "counted": text.counted,
    "duration": text.duration_text,
    "interval": text.interval_text,
    "number": text.number,
    "python_string": text.python_string,
    "whole": text.whole,
}
ENVIRONMENT.tests["fingerprint"] = lambda value: (
    re.fullmatch("[0-9a-f]{16}", str(value)) is not None
)
ENVIRONMENT.globals |= {
    "DEFAULT_GUIDANCE_SCALE": DEFAULT_GUIDANCE_SCALE,
    "KINDS": KINDS,
    "MINIMUM_DIFFUSERS": MINIMUM_DIFFUSERS,
}


def render_card(template: str, card_data: huggingface_hub.CardData, **facts: Any) -> str:
    """Render and sign a card.

    Args:
        template: the file's name.
        card_data: the metadata.
        facts: the template's variables; texts in them are escaped.

    Returns:
        The card: metadata as YAML, then Markdown, then the signature.
    """
    return sign(ENVIRONMENT.get_template(template).render(card_data=card_data, **facts))


def render_model_card(
    folder: Path,
    repo_id: str | None = None,
    license: str | None = None,
) -> str:
    """Render a model's card.

    Args:
        folder: of a pipeline or an autoencoder.
        repo_id: of the model on the Hub, for the examples; None: from the folder's unedited card,
            else a placeholder.
        license: by the Hub's name; None: from the folder's unedited card, else from metrics.json.

    Returns:
        The card: metadata as YAML, then Markdown, then the signature.

    Raises:
        UserError: if there is no model, a report cannot be read, or the Hub allows no such name.
    """
    facts = read_model_facts(folder)
    kept_license, kept_repo_id = _kept(folder / CARD)
    repo_id = repo_id or kept_repo_id
    if repo_id:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise UserError(f"{repo_id} cannot be a model's name on the Hub ({error})") from error
    source = repo_id or str(facts.metrics.get("load_from", PLACEHOLDER))
    if not _SOURCE.fullmatch(source):
        source = PLACEHOLDER
    tags, task = ["autoencoder"], RECONSTRUCTION
    if facts.kind == "pipeline":
        tags = ["class-conditional-image-generation"] if facts.num_classes else []
        task = FROM_PROMPTS if facts.text_encoder else GENERATION
    figures = model_figures(facts)
    results = eval_results(facts, figures)
    model_name = repo_id.rpartition("/")[2] if repo_id else text.one_line(facts.title)
    data_id, name = hub_id(facts.training.get("data")), facts.measured.get("name")
    card_data = huggingface_hub.ModelCardData(
        license=license or kept_license or facts.metrics.get("license"),
        library_name="diffusers",
        pipeline_tag=task[0],
        tags=[*tags, "latent-diffusion", "hf-latent", "safetensors"],
        datasets=facts.metrics.get("datasets") or ([data_id] if data_id else None),
        model_name=model_name if results else None,
        eval_results=results or None,
    )
    return render_card(
        f"{facts.kind}_card.md",
        card_data,
        facts=facts,
        source=source,
        load_name=name if name in released_models() else source,
        autoencoder_kept=reconstruction_figures(facts.autoencoder, "held_out_"),
        **figures,
    )


def write_model_card(folder: Path, repo_id: str | None = None, license: str | None = None) -> bool:
    """Write the card of `render_model_card` into a model's folder, but keep an edited one.

    Args:
        folder: of a pipeline or an autoencoder.
        repo_id: as in `render_model_card`.
        license: as in `render_model_card`.

    Returns:
        Whether the card was written.
    """
    path = Path(folder) / CARD
    if path.is_file() and not is_unedited(path.read_text("utf-8", "replace")):
        return False
    write_text(path, render_model_card(Path(folder), repo_id, license))
    return True


def card_pictures(card: str) -> list[str]:
    """Return the names of the PNG files beside a card that the card shows.

    Args:
        card: the whole text of a README.md.

    Returns:
        Each name once; only letters, digits and `_.-`.
    """
    prose = re.sub(r"^(`{3,}).*?^\1`*$", "", card, flags=re.DOTALL | re.MULTILINE)
    names = dict.fromkeys(unquote(target) for target in _IMAGE.findall(prose))
    return [name for name in names if _PICTURE.fullmatch(name)]


def _kept(path: Path) -> tuple[str | None, str | None]:
    """Return the licence and the repository's name of an unedited card."""
    card = path.read_text("utf-8", "replace") if path.is_file() else ""
    if not is_unedited(card):
        return None, None
    found = _LOADED.search(card)
    license = huggingface_hub.ModelCard(card).data.to_dict().get("license")
    return license, found and found[1]
