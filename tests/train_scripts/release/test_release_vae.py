import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import autoencoder_figures
from autoencoder_figures import measure_autoencoder
from hf_latent.command import parse_config
from hf_latent.data.images.open import open_images
from hf_latent.data.images.pixels import Box
from hf_latent.errors import UserError
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions
from hf_latent.evaluation.pictures import LABEL_WIDTH
from hf_latent.hub.card.render import render_model_card
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from release_vae import ReleaseConfig, release_autoencoder
from tests.small import HELD_OUT, small_trainings

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "train_scripts" / "recipes"
RECIPE = {
    "resize_mode": "pad",
    "max_train_samples": 20,
    "max_train_steps": 2,
    "train_batch_size": 4,
    "max_validation_samples": 4,
}


@pytest.fixture(autouse=True, scope="module")
def small():
    with small_trainings() as patch:
        patch.setattr(autoencoder_figures, "BATCH_SIZE", 20)
        yield


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    arguments = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "run")]
    train_autoencoder(parse_config(AutoencoderConfig, arguments))
    return folder / "run"


def test_figures_equal_those_of_one_batch(run):
    splits = open_images(parse_config(AutoencoderConfig, ["--config", str(run / "config.yaml")]))
    vae, dataset = load_autoencoder(str(run / "model")), splits.validation
    figures = measure_autoencoder(vae, dataset)
    images = torch.stack([dataset[i]["images"] for i in range(HELD_OUT)])
    with torch.no_grad():
        shown = vae.decode(vae.encode(images).latent_dist.mean).sample / 2 + 0.5
    expected = measure_reconstructions([(images / 2 + 0.5, shown)])
    inside = Box(2, 2, 28, 28)
    cropped = measure_reconstructions([(inside.cut(images / 2 + 0.5), inside.cut(shown))])
    assert figures["test_images"] == HELD_OUT
    assert figures["test_psnr_db"] == pytest.approx(expected.psnr_db, abs=1e-4)
    assert figures["test_unpadded_psnr_db"] == pytest.approx(cropped.psnr_db, abs=1e-4)
    assert figures["test_perceptual_distance"] > 0


@pytest.mark.slow
def test_a_release_has_a_model_a_card_pictures_and_figures(run, tmp_path):
    about = yaml.safe_load((RECIPES / "fashion_mnist-32" / "card.yaml").read_text())
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(about | {"name": "made"}))
    metrics = release_autoencoder(
        ReleaseConfig(
            run=str(run),
            about=str(tmp_path / "about.yaml"),
            recipe=str(run.parent / "recipe.yaml"),
            ablation=[f"L1={run}", f"again={run}"],
            pretrained_dir=str(tmp_path / "pretrained"),
            cards_dir=str(tmp_path / "cards"),
        )
    )
    card_dir, model_dir = tmp_path / "cards" / "made", tmp_path / "pretrained" / "made"
    assert json.loads((model_dir / "metrics.json").read_text()) == metrics
    pictures = {"ablation.png", "reconstructions.png"}
    assert {path.name for path in card_dir.iterdir()} == {"README.md", *pictures}
    assert {path.name for path in model_dir.iterdir()} >= {"metrics.json", *pictures}
    assert Image.open(card_dir / "ablation.png").size == (LABEL_WIDTH + 12 * 64, 3 * 64)
    card = (card_dir / "README.md").read_text()
    assert card == render_model_card(model_dir)
    assert metrics["vae_weights_sha256"] == hash_weights(load_autoencoder(str(run / "model")))
    assert metrics["held_out_split_images"] == metrics["test_images"] == HELD_OUT
    assert "2 steps of 4 images (8 images seen)" in card and str(tmp_path) not in card
    assert f"{metrics['test_psnr_db']:.2f} dB" in card
    assert load_autoencoder(str(tmp_path / "pretrained" / "made")).config.scaling_factor == 1


def test_an_unfinished_run_is_refused(tmp_path):
    config = ReleaseConfig(run=str(tmp_path), about="about.yaml", recipe="recipe.yaml")
    with pytest.raises(UserError, match=r"no report\.json"):
        release_autoencoder(config)


@pytest.mark.parametrize("change", [{"max_train_steps": 3}, {"kl_weight": 3e-3}, {"seed": 1}])
def test_a_recipe_that_differs_from_the_runs_settings_is_refused(run, tmp_path, change):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | change))
    config = ReleaseConfig(
        run=str(run),
        about=str(RECIPES / "fashion_mnist-32" / "card.yaml"),
        recipe=str(tmp_path / "recipe.yaml"),
        pretrained_dir=str(tmp_path / "pretrained"),
        cards_dir=str(tmp_path / "cards"),
    )
    with pytest.raises(UserError, match=f"^{run} was not trained by {config.recipe}"):
        release_autoencoder(config)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
