"""The cards of models with prompts."""

from dataclasses import replace

import pytest

from hf_latent.hub.card import render
from hf_latent.hub.card.facts import read_model_facts
from tests.hub.saved_models import blocks
from tests.pipeline.test_prompts import make_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    make_words().save_pretrained(folder)
    return folder


def test_it_says_what_draws_from_words(folder):
    card = render.render_model_card(folder)
    assert "pipeline_tag: text-to-image" in card
    assert "class-conditional" not in card
    assert "| denoiser (`unet`) | UNet2DConditionModel, " in card
    assert "| text encoder (`text_encoder`) | BertModel, prompts of 6 tokens; it stayed" in card
    assert "pixels, from words: a denoiser" in card
    assert "Main arguments: `prompt`, `negative_prompt`, `num_images`," in card
    assert "its prompt is no argument" not in card


@pytest.mark.parametrize("prompt", ['a "red" heart', '"); import os; ("', "a\nb", "{{ 7 * 7 }}"])
def test_an_example_stays_a_string(folder, monkeypatch, prompt):
    facts = read_model_facts(folder)
    facts = replace(facts, training={"example_prompt": prompt})
    monkeypatch.setattr(render, "read_model_facts", lambda _: facts)
    calls = []
    for code in blocks(render.render_model_card(folder), "python"):
        (line,) = (line for line in code.splitlines() if line.startswith("image = pipe("))
        exec(line, {"pipe": lambda **x: calls.append(x) or Drawn()})
    assert calls == [{"prompt": prompt, "num_inference_steps": 3}] * 2


class Drawn:
    images = (None,)
