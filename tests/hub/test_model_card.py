import json
import re
from pathlib import Path

import huggingface_hub
import pytest
from PIL import Image

from hf_latent.hub.model_card import TEMPLATE, render_autoencoder_card
from hf_latent.models.load import PRETRAINED, load_autoencoder, released_models

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"


def read_metrics(name):
    return json.loads((CARDS / name / "metrics.json").read_text())


def test_there_are_two_released_autoencoders():
    assert released_models() == ["emoji", "fashion-mnist-f4"]


@pytest.mark.parametrize("name", released_models())
def test_a_card_is_what_its_metrics_give(name):
    card = (CARDS / name / "README.md").read_text()
    assert card == render_autoencoder_card(read_metrics(name), ROOT / TEMPLATE)
    parsed = huggingface_hub.ModelCard(card)
    assert parsed.data.library_name == "diffusers"
    assert parsed.data.eval_results[0].metric_value > 20
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert Image.open(CARDS / name / picture).size[0] > 100


@pytest.mark.parametrize("name", released_models())
def test_a_released_model_is_small_and_as_its_card_says(name):
    metrics, vae = read_metrics(name), load_autoencoder(name)
    (weights,) = (PRETRAINED / name).glob("*.safetensors")
    assert weights.stat().st_size <= 3e6
    assert weights.stat().st_size == pytest.approx(metrics["weights_mb"] * 1e6)
    assert sum(p.numel() for p in vae.parameters()) == metrics["parameters"]
    assert vae.config.scaling_factor == 1
    assert "/tmp" not in (PRETRAINED / name / "config.json").read_text()


def test_released_figures_are_what_was_promised():
    fashion, emoji = read_metrics("fashion-mnist-f4"), read_metrics("emoji")
    assert fashion["test_images"] == 10_000
    assert fashion["test_psnr_db"] >= 29
    assert fashion["test_ssim"] >= 0.93
    assert emoji["test_psnr_db"] >= 24
    assert emoji["test_grey_psnr_db"] >= 24
