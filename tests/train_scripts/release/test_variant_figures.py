from dataclasses import replace

import pytest

import variant_figures
from hf_latent.data.images.sources import BUILT_IN
from hf_latent.output import read_json
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images, small_trainings
from variant_figures import Experiment, Variant, run_experiment


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(variant_figures, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(variant_figures, "NUM_IMAGES", 20)
    monkeypatch.setattr(variant_figures, "FLOW_INFERENCE_STEPS", 3)
    changes = {"equivariance_weight": 0.5}
    variants = [
        Variant("without"),
        Variant("with", changes, {"train_batch_size": 8}, {"dropout": 0.1}),
    ]
    autoencoder = variant_figures.VAE | {"fold_samples": 20}
    return Experiment({"resolution": 32, "resize_mode": "pad"}, variants, 0.02, 0.06, autoencoder)


def test_each_variant_trains_with_its_settings_and_is_measured(experiment, tmp_path):
    with small_trainings() as patch:
        patch.setitem(BUILT_IN, "fashion_mnist", few_images)
        report = run_experiment(experiment, "fashion_mnist", tmp_path)
    for row, weight, size in zip(report["variants"], (0.0, 0.5), (32, 8), strict=True):
        autoencoder, denoiser = (
            read_json(tmp_path / row["name"] / name / "model" / "training.json")
            for name in ("autoencoder", "denoiser")
        )
        assert autoencoder["equivariance_weight"] == weight
        assert denoiser["train_batch_size"] == size
        config = read_json(tmp_path / row["name"] / "denoiser" / "model" / "unet" / "config.json")
        assert config["dropout"] == (0.1 if weight else 0.0)
        assert denoiser["vae_weights_sha256"] == autoencoder["vae_weights_sha256"]
        assert row["denoiser_minutes"] <= 0.04
        assert row["generated_fd"] > report["real_fd"] > 0
        assert row["guided_generated_fd"] != row["generated_fd"]
    assert report["variants"][0]["floor_fd"] != report["variants"][1]["floor_fd"]


def test_autoencoders_alone(experiment, tmp_path):
    alone = replace(experiment, denoiser_minutes=0.0, variants=experiment.variants[:1])
    with small_trainings() as patch:
        patch.setitem(BUILT_IN, "fashion_mnist", few_images)
        (row,) = run_experiment(alone, "fashion_mnist", tmp_path)["variants"]
    assert row["reconstruction_psnr_db"] > 5 and row["floor_fd"] > 0
    assert "generated_fd" not in row
    assert (tmp_path / "without" / "autoencoder").is_dir()
    assert not (tmp_path / "without" / "denoiser").exists()
