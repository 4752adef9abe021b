import json

import pytest
import torch
from PIL import Image

from autoencoder_figures import comparison_rows
from compare_models import CompareConfig, compare_models
from hf_latent.data.images import sources
from hf_latent.errors import UserError
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import NARROW_DENOISER, make_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few images, and short vectors of them."""
    monkeypatch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
    monkeypatch.setattr("compare_models.load_feature_extractor", lambda name: ShortVectors())


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    vae = make_autoencoder()
    unet = create_denoiser("tiny", vae, (1, 32, 32), 10, **NARROW_DENOISER)
    scheduler = create_scheduler("flow")
    pipeline = LatentDiffusionPipeline(vae, unet, scheduler, num_inference_steps=1)
    pipeline.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def test_models_are_measured_on_the_same_images(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "compare_models.measure_autoencoder",
        lambda vae, dataset: {"test_psnr_db": 20.0, "test_grey_psnr_db": 21.0},
    )
    config = CompareConfig(
        data="fashion_mnist",
        resize_mode="pad",
        models=[f"one={model}", f"two={model}"],
        output_dir=str(tmp_path / "out"),
        num_images=40,
        num_seeds=1,
    )
    report = compare_models(config)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["models"][0]["name"] == (
        "one"
    )
    one, two = report["models"]
    assert one["num_inference_steps"] == one["denoiser_evaluations_per_image"] == 1
    assert one["generated_fd"] == pytest.approx(two["generated_fd"])
    # The samples of an untrained model have a higher FD than real images.
    assert one["generated_fd"] > 2 * report["real_against_real_fd"] > 0
    assert Image.open(tmp_path / "out" / "two.png").size == (8 * 64, 4 * 64)
    (row, _) = comparison_rows(tmp_path / "out" / "comparison.json")
    assert row["figures"]["latent"] == "4 x 8 x 8"
    assert row["figures"]["PSNR"] == "20.00 dB"
    assert row["figures"]["FD of 40 generated"] == f"{one['generated_fd_by_seed'][0]:.1f}"


def test_a_guide_does_not_change_the_comparison(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "compare_models.measure_autoencoder",
        lambda *given: {"test_psnr_db": 0.0},
    )
    vae = make_autoencoder()
    unet, guide = (create_denoiser("tiny", vae, (1, 32, 32), None, **NARROW_DENOISER) for _ in "12")
    for name, guide_unet in (("without", None), ("with", guide)):
        pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"), None, guide_unet)
        pipeline.save_pretrained(tmp_path / name)
    config = CompareConfig(
        data="fashion_mnist",
        resize_mode="pad",
        models=[f"{name}={tmp_path / name}" for name in ("without", "with")],
        output_dir=str(tmp_path / "out"),
        num_images=20,
        num_inference_steps=1,
        num_seeds=1,
    )
    without, guided = compare_models(config)["models"]
    assert without["generated_fd"] == guided["generated_fd"]


def test_too_few_images_are_refused(model, tmp_path):
    config = CompareConfig(
        models=[f"one={model}"],
        output_dir=str(tmp_path / "out"),
        max_train_samples=30,
        num_images=20,
    )
    with pytest.raises(UserError, match="needs 40 training images"):
        compare_models(config)
    assert not (tmp_path / "out").exists()
