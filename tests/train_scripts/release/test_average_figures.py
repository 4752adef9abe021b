from pathlib import Path

import pytest

import average_figures
from average_figures import compare
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.images.sources import BUILT_IN
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.experiments.sweep.pair import measure_generated
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.pipeline.denoise import Guidance
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from tests.conftest import make_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images


@pytest.fixture
def run_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(BUILT_IN, "fashion_mnist", few_images)
    make_autoencoder(1).save_pretrained(tmp_path / "vae")
    config = DenoiserConfig(
        vae=str(tmp_path / "vae"),
        resolution=16,
        max_train_steps=9,
        train_batch_size=4,
        ema_snapshot_steps=2,
        output_dir=str(tmp_path / "run"),
    )
    return train_denoiser(config).model_dir.parent


def test_averages_guidance_and_guides_are_measured(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(average_figures, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(average_figures, "NUM_IMAGES", 20)
    monkeypatch.setattr(average_figures, "LENGTHS", (None, 0.1))
    monkeypatch.setattr(average_figures, "GUIDANCES", [Guidance(3.0, (0.0, 0.8))])
    monkeypatch.setattr(average_figures, "GUIDE_SHARES", (1 / 4,))
    monkeypatch.setattr(average_figures, "FASHION_MNIST", {"resolution": 16})
    report = compare(run_folder, "fashion_mnist", tmp_path / "models")
    averages = report["averages"]
    assert [x["sigma_rel"] for x in averages] == [None, None, 0.1, 0.1]
    assert [x.get("guidance_scale") for x in averages] == [None, 2.0, None, 2.0]
    by_weights = [x["generated_fd"] for x in averages]
    assert len(set(by_weights)) == 4, "each row has its own weights or guidance"
    best = averages[by_weights.index(min(by_weights))]["sigma_rel"]
    guided, *guides = report["others"]
    assert {x["sigma_rel"] for x in report["others"]} == {best}
    assert (guided["guidance_scale"], guided["guidance_interval"]) == (3.0, (0.0, 0.8))
    assert [x["guidance_scale"] for x in guides] == [2.0, 2.5, 3.0]
    assert {x["guide_step"] for x in guides} == {2}


def test_guidance_without_an_interval_is_at_all_levels(run_folder):
    splits = open_images(ImagesConfig(data="fashion_mnist", resolution=16))
    real, _ = measure_real_images(splits, 20, 0, ShortVectors())
    pipeline, found = load_pipeline(str(run_folder)), []
    for own in (None, [0.0, 0.5]):
        pipeline.register_to_config(guidance={"guidance_interval": own} if own else None)
        found.append(measure_generated(pipeline, real, 0, 1, 3, guidance=Guidance(3.0)))
    assert found[0]["generated_fd"] == found[1]["generated_fd"]
    assert found[1]["denoiser_evaluations_per_image"] == 6
