import json
from pathlib import Path

import huggingface_hub
import jinja2.meta
import pytest
from PIL import Image

from hf_latent.evaluation.images.sampling import choose_sampling, load_pipeline, sample_images
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.render import ENVIRONMENT, card_pictures, render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.models.load import PRETRAINED, load_autoencoder, released_models
from hf_latent.pipeline.denoise import Guidance

ROOT = Path(__file__).parents[3]
CARDS = ROOT / "model_cards"


def read_metrics(name):
    return json.loads((PRETRAINED / name / "metrics.json").read_text())


def test_templates_name_only_what_they_are_given():
    given = {
        "autoencoder_card.md": {"facts", "source", "load_name", "kept", "latents"},
        "citation.md": {"facts"},
        "cache_card.md": {
            *("manifest", "title", "repo_id", "rows", "vae", "image_values", "latent_values"),
            *("size", "class_names"),
        },
        "export_card.md": {
            *("class_name", "format", "num_classes", "first_class", "guidance_scale", "interval"),
            *("guided", "base_model", "steps", "distilled", "flow", "converted", "heun", "cut"),
            *("num_train_timesteps", "diffusers_version", "weakened", "pictures", "has_values"),
            *("prompts", "classes", "text_encoder", "latent_channels", "square", "rgba"),
        },
        "pipeline_card.md": {"facts", "source", "generated", "copied", "kept", "autoencoder_kept"},
        "sentences.md": set(),
    }
    assert ENVIRONMENT.list_templates(["md"]) == sorted(given)
    for name, names in given.items():
        tree = ENVIRONMENT.parse(ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0])
        own = {found.name for found in tree.find_all(jinja2.nodes.Name) if found.ctx == "store"}
        named = jinja2.meta.find_undeclared_variables(tree)
        assert named - own - {"card_data", *ENVIRONMENT.globals} == names, name


def test_every_released_model_has_a_card():
    assert sorted(path.parent.name for path in CARDS.glob("*/README.md")) == released_models()
    assert {"emoji", "fashion-mnist", "fashion-mnist-f4"} <= set(released_models())


@pytest.mark.parametrize("name", released_models())
def test_a_card_is_what_its_metrics_give(name):
    card = (CARDS / name / "README.md").read_text()
    assert is_unedited(card)
    assert card == render_model_card(PRETRAINED / name)
    parsed = huggingface_hub.ModelCard(card)
    assert parsed.data.library_name == "diffusers"
    assert {x.metric_type: x.metric_value for x in parsed.data.eval_results}["psnr"] > 20
    pictures = card_pictures(card)
    assert pictures
    assert {path.name for path in (CARDS / name).iterdir()} == {"README.md", *pictures}
    for picture in pictures:
        assert Image.open(CARDS / name / picture).size[0] > 100
        shown, kept = (folder / name / picture for folder in (CARDS, PRETRAINED))
        assert shown.read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("name", released_models())
def test_the_hubs_own_validation_takes_a_released_card(process, name):
    card = (CARDS / name / "README.md").read_text()
    outcome = process.run(f"import huggingface_hub\nhuggingface_hub.ModelCard({card!r}).validate()")
    assert outcome.status == 0, outcome.err


AUTOENCODERS = ("emoji", "fashion-mnist-f4")


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_released_model_is_small_and_as_its_card_says(name):
    metrics, vae = read_metrics(name), load_autoencoder(name)
    (weights,) = (PRETRAINED / name).glob("*.safetensors")
    assert weights.stat().st_size <= 3e6
    assert weights.stat().st_size == pytest.approx(metrics["weights_mb"] * 1e6)
    assert sum(p.numel() for p in vae.parameters()) == metrics["parameters"]
    assert vae.config.scaling_factor == 1
    assert "/tmp" not in (PRETRAINED / name / "config.json").read_text()


def test_the_released_pipeline_is_small_and_reaches_its_promised_figures():
    metrics, folder = read_metrics("fashion-mnist"), PRETRAINED / "fashion-mnist"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 12e6
    facts = read_model_facts(folder)
    assert facts.training and facts.metrics, "the reports are about these weights"
    assert metrics["num_images"] == 10_000
    pipeline = load_pipeline("fashion-mnist")
    steps, guidance = choose_sampling(pipeline)
    found = metrics["guidance_scale"], tuple(metrics["guidance_interval"])
    assert found == (guidance.scale, guidance.interval)
    assert metrics["num_inference_steps"] == steps
    assert metrics["sampler"] == type(pipeline.scheduler).__name__
    assert metrics["fd"] <= 1.5 * metrics["floor_fd"]
    assert metrics["label_agreement"] >= metrics["label_agreement_judge_real_accuracy"]
    assert metrics["train_on_generated_test_on_real_accuracy"] >= 0.86
    assert metrics["memorisation_found"] is False
    assert metrics["memorisation_latents_copies"] == 0
    assert facts.training["seconds"] <= 100 * 60


def test_the_released_model_of_words_is_small_and_draws_held_out_combinations():
    metrics, folder = read_metrics("emoji-words"), PRETRAINED / "emoji-words"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 12e6
    facts = read_model_facts(folder)
    assert facts.training and facts.metrics, "the reports are about these weights"
    assert metrics["held_out_images"] == facts.training["held_out_images"] == 121
    recall, real = (metrics[f"{x}retrieval_recall_at_5"] for x in ("", "real_"))
    assert recall >= 0.8 * real
    assert metrics["fd"] <= 1.5 * metrics["floor_fd"]
    pipeline = load_pipeline("emoji-words")
    light, dark = (
        sample_images(pipeline, None, 1, 0, 1, prompts=[f"{tone} skin tone firefighter"])
        for tone in ("light", "dark")
    )
    assert light.shape == (1, 4, 64, 64)
    assert (light - dark).abs().mean() > 0.02


def test_the_released_student_is_nearly_as_good_as_its_teacher():
    metrics, teacher = read_metrics("fashion-mnist-4step"), read_metrics("fashion-mnist")
    facts = read_model_facts(PRETRAINED / "fashion-mnist-4step")
    assert facts.training and facts.metrics, "the reports are about these weights"
    assert facts.teacher["fd"] == teacher["fd"], "its card shows both"
    weights = read_model_facts(PRETRAINED / "fashion-mnist").weights
    assert facts.training["teacher_unet_weights_sha256"] == weights["unet"].sha256
    pipeline = load_pipeline("fashion-mnist-4step")
    assert choose_sampling(pipeline) == (4, Guidance())
    assert metrics["denoiser_evaluations_per_image"] == 4
    assert metrics["fd"] <= 1.05 * teacher["fd"]
    assert abs(metrics["label_agreement"] - teacher["label_agreement"]) <= 0.01
    taught = "train_on_generated_test_on_real_accuracy"
    assert metrics[taught] >= teacher[taught] - 0.02
    assert metrics["memorisation_latents_copies"] == 0


def test_the_released_autoencoder_and_its_pipelines_are_small():
    names = "fashion-mnist-f4", "fashion-mnist", "fashion-mnist-4step"
    files = [path for name in names for path in (PRETRAINED / name).rglob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_the_package_has_no_weights_twice():
    files = [path.read_bytes() for path in PRETRAINED.rglob("*.safetensors")]
    assert len(set(files)) == len(files) >= 3


def test_released_autoencoders_reach_their_promised_figures():
    fashion, emoji = read_metrics("fashion-mnist-f4"), read_metrics("emoji")
    assert fashion["test_images"] == 10_000
    assert fashion["test_psnr_db"] >= 29
    assert fashion["test_ssim"] >= 0.93
    assert emoji["test_psnr_db"] >= 24
    assert emoji["test_grey_psnr_db"] >= 24
