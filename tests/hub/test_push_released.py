"""`hf-latent push --model NAME` of a released model, whose folder in the package has no code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.hub.card.render import card_pictures
from hf_latent.hub.model_files import CODE
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import PRETRAINED, load_autoencoder
from hf_latent.pipeline import pipeline as travelling
from tests.hub.conftest import TOKEN, folder_files, model_files
from tests.hub.saved_models import ROOT, results, section

DRAWING = """
import numpy as np, torch
pipe = {loading}
generator = torch.Generator().manual_seed(0)
images = pipe(["Bag", "Coat"], generator=generator, num_inference_steps=3, output_type="np").images
np.save({out!r}, images)
print(type(pipe).__module__)
"""
PIPELINES = "fashion-mnist", "fashion-mnist-4step"
OURS = "__import__('hf_latent').LatentDiffusionPipeline.from_pretrained('ada/clothes')"
PLAIN = """__import__("diffusers").DiffusionPipeline.from_pretrained(
    "ada/clothes", trust_remote_code=True, use_safetensors=True)"""


def push(process, name, *flags):
    arguments = ("push", "--model", name, "--repo_id", "ada/clothes", *flags)
    return process.command(*arguments, token=TOKEN)


def sections(card):
    """The text under each heading, but that of how to load it; without the signature."""
    card = card.partition("\n<!-- Written by ")[0]
    headings = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    return {name: section(card, name) for name in headings if name != "Use it"}


def without_index(data):
    return {key: value for key, value in data.to_dict().items() if key != "model-index"}


@pytest.mark.parametrize("name", [*PIPELINES, "fashion-mnist-f4", "emoji"])
def test_a_released_model_goes_with_its_released_card(hub, process, name):
    folder = PRETRAINED / name
    before = folder_files(folder)
    outcome = push(process, name)
    assert outcome.status == 0 and "not sent" not in outcome.err, outcome.err
    assert folder_files(folder) == before
    sent = model_files(hub, repo_id="ada/clothes")
    card = sent.pop("README.md").decode()
    released = (ROOT / "model_cards" / name / "README.md").read_text()
    assert sections(card) == sections(released)
    assert "Not known: what it was trained on" not in card
    assert results(card) == results(released)
    assert without_index(ModelCard(card).data) == without_index(ModelCard(released).data)
    assert ModelCard(card).data.model_name == "clothes"
    assert f"\n# {name}\n" in card and '"ada/clothes"' in card and "models/pretrained" not in card
    assert set(card_pictures(card)) == {x for x in before if x.endswith(".png")}
    if name in PIPELINES:
        metrics = json.loads((folder / "metrics.json").read_text())
        figures = [metrics[key] for key in ("fd", "floor_fd", "real_fd")]
        if name != "fashion-mnist":
            teacher = json.loads((PRETRAINED / "fashion-mnist" / "metrics.json").read_text())
            figures.insert(1, teacher["fd"])
        shown = " | ".join(f"{figure:.2f}" for figure in figures)
        assert f"| FD | {shown} |" in section(card, "Figures")
        code = Path(travelling.__file__).parent
        before |= {file: (code / file).read_bytes() for file in CODE}
        weights = "diffusion_pytorch_model.safetensors"
        before[f"vae/{weights}"] = (PRETRAINED / "fashion-mnist-f4" / weights).read_bytes()
        index = b'  "_class_name": "LatentDiffusionPipeline",\n'
        both = b'  "_class_name": [\n    "pipeline",\n    "LatentDiffusionPipeline"\n  ],\n'
        assert index in before["model_index.json"]
        before["model_index.json"] = before["model_index.json"].replace(index, both)
    assert sent == before
    assert "already there" in push(process, name).out


def test_a_pushed_released_pipeline_draws_the_same_pixels(hub, process, tmp_path):
    assert push(process, "fashion-mnist").status == 0
    pipeline = load_pipeline("fashion-mnist")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    expected = pipeline(
        ["Bag", "Coat"], generator=generator, num_inference_steps=3, output_type="np"
    ).images
    for loading, module in ((OURS, "hf_latent.pipeline."), (PLAIN, "diffusers_modules.")):
        out = str(tmp_path / "images.npy")
        outcome = process.run(DRAWING.format(loading=loading, out=out))
        assert outcome.status == 0 and outcome.out.splitlines()[-1].startswith(module), outcome.err
        np.testing.assert_array_equal(np.load(out), expected)


def test_a_pushed_released_autoencoder_has_the_same_weights(hub, process):
    assert push(process, "emoji").status == 0
    code = "from hf_latent.models.load import load_autoencoder\n"
    code += "from hf_latent.models.frozen import hash_weights\n"
    outcome = process.run(code + "print(hash_weights(load_autoencoder('ada/clothes')))")
    assert outcome.out.strip() == hash_weights(load_autoencoder("emoji")), outcome.err


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        (
            "fashion",
            (),
            "--model fashion is not a folder, nor a released model (emoji, emoji-words, fashion-",
        ),
        ("emoji", ("--checkpoints",), "--checkpoints: emoji has no checkpoint-N: pass the folder"),
    ],
)
def test_what_is_no_released_model_is_one_line(hub, process, name, flags, says):
    outcome = push(process, name, *flags)
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {says}") and outcome.err.count("\n") == 1
    assert hub.requests == []
