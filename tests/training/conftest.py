import pytest

from hf_latent.models.presets import AUTOENCODERS, DENOISERS
from hf_latent.training.autoencoder import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from tests.conftest import NARROW_AUTOENCODER, NARROW_DENOISER

SHORT = {
    "resize_mode": "pad",
    "max_train_samples": 40,
    "max_train_steps": 4,
    "train_batch_size": 8,
    "validation_steps": 2,
    "max_validation_samples": 12,
    "checkpointing_steps": None,
}


@pytest.fixture(autouse=True)
def narrow_presets(monkeypatch):
    """The tiny presets, narrower still."""
    monkeypatch.setitem(AUTOENCODERS, "tiny", AUTOENCODERS["tiny"] | NARROW_AUTOENCODER)
    monkeypatch.setitem(DENOISERS, "tiny", DENOISERS["tiny"] | NARROW_DENOISER)


@pytest.fixture
def autoencoder_config(tmp_path):
    return lambda **changes: AutoencoderConfig(
        **{"output_dir": str(tmp_path / "autoencoder"), **SHORT, **changes}
    )


@pytest.fixture
def denoiser_config(tmp_path):
    return lambda **changes: DenoiserConfig(
        **{
            "output_dir": str(tmp_path / "denoiser"),
            "vae": str(tmp_path / "autoencoder" / "model"),
            **SHORT,
            **changes,
        }
    )
