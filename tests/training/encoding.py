"""A tiny autoencoder and settings for tests of encoding and of latent sources."""

from pathlib import Path

from hf_latent.training.latents.config import EncodeConfig
from tests.conftest import make_autoencoder

IMAGES = {"resize_mode": "pad", "horizontal_flip": True, "max_train_samples": 40}


def save_autoencoder(folder: Path, **changes) -> str:
    """Save the tiny autoencoder, with changes of its configuration."""
    vae = make_autoencoder(sample_size=32)
    vae.register_to_config(**changes)
    vae.save_pretrained(folder)
    return str(folder)


def encode_settings(vae: str | Path, output_dir: str | Path, **changes) -> EncodeConfig:
    """40 images and their mirror images in 4 files, 12 held-out ones in 2."""
    return EncodeConfig(
        **{
            **IMAGES,
            "vae": str(vae),
            "output_dir": str(output_dir),
            "max_validation_samples": 12,
            "encode_batch_size": 4,
            "shard_rows": 10,
            **changes,
        }
    )


def as_flags(config: EncodeConfig) -> list[str]:
    return [
        word
        for name, value in vars(config).items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]
