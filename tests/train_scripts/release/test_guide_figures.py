import yaml

import guide_figures
from guide_figures import compare
from hf_latent.data.images.sources import BUILT_IN
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance
from tests.conftest import make_autoencoder, make_denoiser
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images


def test_guides_are_trained_once_and_measured(tmp_path, monkeypatch):
    vae = make_autoencoder(1, sample_size=32)
    vae.save_pretrained(tmp_path / "vae")
    unet = make_denoiser(vae, 10)
    unet.register_to_config(sample_size=8)
    LatentDiffusionPipeline(vae, unet, create_scheduler("flow")).save_pretrained(tmp_path / "model")
    monkeypatch.setitem(BUILT_IN, "fashion_mnist", few_images)
    recipe = yaml.safe_load(guide_figures.RECIPE.read_text())
    (tmp_path / "guide.yaml").write_text(
        yaml.safe_dump(recipe | {"vae": str(tmp_path / "vae"), "train_batch_size": 4})
    )
    monkeypatch.setattr(guide_figures, "RECIPE", tmp_path / "guide.yaml")
    monkeypatch.setattr(guide_figures, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(guide_figures, "NUM_IMAGES", 20)
    monkeypatch.setattr(guide_figures, "GUIDES", ((1, 0.1), (2, 0.95)))
    guidances = [Guidance(1.5, (0.0, 0.8)), Guidance(1.5, (0.0, 1.0))]
    monkeypatch.setattr(guide_figures, "GUIDANCES", guidances)
    arguments = str(tmp_path / "model"), "fashion_mnist", tmp_path / "runs"
    rows = compare(*arguments)["guides"]
    assert [(x["guide_steps"], x["guide_label_dropout"]) for x in rows] == [
        *[(1, 0.1)] * 2,
        *[(2, 0.95)] * 2,
    ]
    assert [x["denoiser_evaluations_per_image"] for x in rows] == [14, 16] * 2
    assert len({x["generated_fd"] for x in rows}) == 4
    monkeypatch.setattr(guide_figures, "train_denoiser", None)
    again = compare(*arguments)["guides"]
    assert [x["generated_fd"] for x in again] == [x["generated_fd"] for x in rows]
