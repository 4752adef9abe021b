"""Writing a card into a model's folder: what is kept, and what is never overwritten."""

import huggingface_hub
import pytest

from hf_latent.hub.card.render import render_model_card, write_model_card
from hf_latent.hub.card.signature import is_unedited, sign
from tests.hub.saved_models import write_reports


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def licence(card: str) -> str | None:
    return huggingface_hub.ModelCard(card).data.to_dict().get("license")


def test_it_is_what_render_gives_and_is_signed(folder):
    assert write_model_card(folder, "ada/clothes", "mit")
    card = (folder / "README.md").read_text()
    assert card == render_model_card(folder, "ada/clothes", "mit")
    assert is_unedited(card)
    assert card.count('"ada/clothes"') == 2 and "path/to/model" not in card


def test_a_new_card_keeps_licence_and_name(folder, pipeline):
    write_model_card(folder, "ada/clothes", "mit")
    write_reports(folder, pipeline)
    assert write_model_card(folder)
    card = (folder / "README.md").read_text()
    assert licence(card) == "mit" and card.count('"ada/clothes"') == 2 and "6.17" in card
    assert write_model_card(folder, "bob/clothes", "apache-2.0")
    card = (folder / "README.md").read_text()
    assert licence(card) == "apache-2.0" and '"bob/clothes"' in card and '"ada/' not in card


@pytest.mark.parametrize("call", ['from_pretrained("ada/vae", ', 'from_pretrained(\n    "ada/vae"'])
def test_the_name_of_an_autoencoder_is_kept_however_its_card_is_wrapped(vae, tmp_path, call):
    vae.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(sign(f"---\n---\n\n# Vae\n\nvae = X.{call}\n"))
    assert write_model_card(tmp_path)
    assert (tmp_path / "README.md").read_text().count('"ada/vae"') == 2


def test_a_card_without_licence_and_name_stays_without_them(folder):
    write_model_card(folder)
    write_model_card(folder)
    card = (folder / "README.md").read_text()
    assert licence(card) is None and card.count('"path/to/model"') == 2


@pytest.mark.parametrize("edited", ["mine\n", "---\nlicense: cc0-1.0\n---\n# mine\n"])
def test_a_card_written_by_a_person_is_kept(folder, edited):
    (folder / "README.md").write_text(edited)
    assert not write_model_card(folder, license="mit")
    assert (folder / "README.md").read_text() == edited


def test_nothing_is_taken_from_an_edited_card(folder):
    write_model_card(folder, "ada/clothes", "mit")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "mine\n")
    assert not write_model_card(folder)
    card = render_model_card(folder)
    assert licence(card) is None and '"ada/' not in card


def test_a_card_in_another_encoding_counts_as_edited(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe\x00broken")
    assert not write_model_card(folder)
    assert (folder / "README.md").read_bytes() == b"\xff\xfe\x00broken"


def test_a_name_in_the_text_is_no_name_of_a_repository(folder):
    (folder / "README.md").write_text(sign('---\n---\n\nfrom_pretrained("../secret/x") x/y\n'))
    assert '"path/to/model"' in render_model_card(folder)
