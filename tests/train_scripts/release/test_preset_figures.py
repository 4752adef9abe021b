import json

from hf_latent.models.presets import create_autoencoder, create_denoiser
from hf_latent.training import autoencoder_config, denoiser_config
from preset_figures import measure_preset


def test_figures_of_a_preset(tmp_path):
    figures = measure_preset("tiny", 16, tmp_path)
    vae = create_autoencoder("tiny", 3, 16)
    unet = create_denoiser("tiny", vae, (3, 16, 16), num_classes=10)
    assert figures["latent_shape"] == [8, 4, 4] and figures["compression_ratio"] == 6
    for name, model, module in (
        ("autoencoder", vae, autoencoder_config),
        ("denoiser", unet, denoiser_config),
    ):
        own, defaults = figures[name], module.DEFAULTS["tiny"]
        parameters = sum(x.numel() for x in model.parameters())
        assert own["parameters"] == parameters
        assert own["train_batch_size"] == own["measured_shape"][0] == defaults.train_batch_size
        assert own["learning_rate"] == defaults.learning_rate
        # Weights, gradients, two moments and the average, in float32.
        assert own["memory_mb"] > 5 * 4 * parameters / 2**20
        assert own["images_per_second"] > 0
    assert not (tmp_path / "run").exists(), "nothing is trained"
    json.dumps(figures)
