"""The learning rate and the batch are those of the preset, unless they are given."""

from typing import get_args

import pytest

from hf_latent.models.presets import Preset
from hf_latent.training import autoencoder_config, denoiser_config
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig

PLACES = {"data": "images", "output_dir": "run"}
KINDS = [
    (AutoencoderConfig, autoencoder_config, PLACES, "pretrained_vae"),
    (DenoiserConfig, denoiser_config, PLACES | {"vae": "vae"}, "pretrained_unet"),
]


@pytest.mark.parametrize(("config", "module", "places", "pretrained"), KINDS)
@pytest.mark.parametrize("preset", get_args(Preset))
def test_of_each_preset(config, module, places, pretrained, preset):
    own, defaults = config(**places, preset=preset), module.DEFAULTS[preset]
    assert (own.learning_rate, own.train_batch_size) == (
        defaults.learning_rate,
        defaults.train_batch_size,
    )


@pytest.mark.parametrize(("config", "module", "places", "pretrained"), KINDS)
def test_of_a_pretrained_model(config, module, places, pretrained):
    """Its width is not the preset's, which it ignores."""
    own = config(**places, **{pretrained: "model"}, preset="tiny")
    assert own.learning_rate == module.PRETRAINED.learning_rate
    assert own.train_batch_size == module.PRETRAINED.train_batch_size


@pytest.mark.parametrize(("config", "module", "places", "pretrained"), KINDS)
def test_given_ones_win(config, module, places, pretrained):
    own = config(**places, learning_rate=0.25)
    assert own.learning_rate == 0.25
    assert own.train_batch_size == module.DEFAULTS["tiny"].train_batch_size
    assert config(**places, train_batch_size=3).train_batch_size == 3


def test_wide_models_have_lower_rates():
    for module in (autoencoder_config, denoiser_config):
        rates = [module.DEFAULTS[x].learning_rate for x in ("tiny", "small", "base", "ldm-f8")]
        assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]
