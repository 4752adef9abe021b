"""A card names the guide of its figures."""

from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.render import render_model_card
from hf_latent.hub.export import render_export_card
from hf_latent.models.frozen import hash_weights
from tests.hub.saved_models import section, write_reports


def test_a_card_shows_its_guide_and_no_figures_of_another_guide(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    own = {"guide": "guide_unet", "guide_unet_weights_sha256": hash_weights(guided.guide_unet)}
    write_reports(tmp_path, guided, metrics=own)
    facts = read_model_facts(tmp_path)
    assert facts.weights["guide_unet"].sha256 == own["guide_unet_weights_sha256"]
    card = render_model_card(tmp_path)
    assert "| guide, a weaker denoiser (`guide_unet`) | UNet2DModel, " in card
    assert own["guide_unet_weights_sha256"] in section(card, "What it is")
    assert (
        "Samples at autoguidance 2 by guide_unet, 20 steps (40 evaluations of the denoiser or its "
        "guide per image)."
    ) in section(card, "Figures")
    assert "autoguidance 2, guide guide_unet, 20 steps, 10,000 images" in card
    for other in ({"guide_unet_weights_sha256": "0" * 64}, {"guide_unet_weights_sha256": None}):
        write_reports(tmp_path, guided, metrics=own | other)
        facts = read_model_facts(tmp_path)
        assert facts.metrics == {}
        assert facts.training["steps"] == 18_000


def test_a_name_in_a_report_is_no_markdown(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    own = {"guide": "a|b {x}\n", "guide_unet_weights_sha256": hash_weights(guided.guide_unet)}
    write_reports(tmp_path, guided, metrics=own)
    card = render_model_card(tmp_path)
    assert "at autoguidance 2 by a\\|b {x}, 20 steps" in section(card, "Figures")
    assert "autoguidance 2, guide a|b {x}, 20 steps" in card
    write_reports(tmp_path, guided, metrics=own | {"guidance_scale": 1.0})
    assert "Samples at guidance 1, 20 steps" in render_model_card(tmp_path)


def test_figures_of_a_guide_that_the_model_lacks_are_left_out(guided, tmp_path):
    own = {"guide": "guide_unet", "guide_unet_weights_sha256": hash_weights(guided.guide_unet)}
    guided.guide_unet = None
    guided.save_pretrained(tmp_path)
    write_reports(tmp_path, guided, metrics=own)
    facts = read_model_facts(tmp_path)
    assert facts.metrics == {} and facts.training["steps"] == 18_000
    assert "guide" not in render_model_card(tmp_path)


def test_the_card_of_an_export_says_that_it_lacks_the_guide(guided, unconditional_guided):
    card = render_export_card(guided)
    assert "guide (`guide_unet`): guidance here is that of the classes;" in card
    assert "of the original model without its guide, with the same guidance at all" in card
    assert "- the original's guide (`guide_unet`);" in render_export_card(unconditional_guided)
    unconditional_guided.guide_unet = None
    assert "guide" not in render_export_card(unconditional_guided).partition("# A latent")[2]
