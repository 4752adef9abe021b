"""A resume that is refused leaves every byte of the run's folder as it was."""

import shutil
from pathlib import Path

import pytest

from hf_latent.command import dump_config, run_command
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.encode import encode_latents
from tests.data.latent_caches import flip_a_bit
from tests.training.conftest import short_autoencoder, short_denoiser
from tests.training.encoding import encode_settings, save_autoencoder

STEPS = {"max_train_steps": 2, "checkpointing_steps": 1}
CACHED = {"max_train_samples": None, "validation_steps": 3}
STREAM = {"stream_latents": True, "stream_lanes": 2, "stream_buffer_rows": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An autoencoder, a denoiser on its latents, and one on those of a cache, in a folder."""
    folder = tmp_path_factory.mktemp("trained")
    train_autoencoder(short_autoencoder(folder, **STEPS))
    train_denoiser(short_denoiser(folder, **STEPS))
    encode_latents(encode_settings(folder / "autoencoder" / "model", folder / "cache"))
    run = {"latents": str(folder / "cache"), "output_dir": str(folder / "cached")}
    train_denoiser(short_denoiser(folder, **STEPS | CACHED | run))
    save_autoencoder(folder / "other")
    encode_latents(
        encode_settings(folder / "autoencoder" / "model", folder / "fewer", max_train_samples=30)
    )
    return folder


def all_bytes(folder: Path) -> dict[Path, bytes | None]:
    """Read every file of a folder and of those in it, which have no bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "trained")


def assert_refused(run: Path, config: AutoencoderConfig | DenoiserConfig, message: str, capsys):
    """Resume a run by a whole command, which is refused with the message and changes nothing."""
    recipe = run.with_name("recipe.yaml")
    recipe.write_text(dump_config(config, resume_from_checkpoint="latest"))
    train = train_denoiser if isinstance(config, DenoiserConfig) else train_autoencoder
    before = all_bytes(run)
    with pytest.raises(SystemExit) as ended:
        run_command(type(config), train, ["--config", str(recipe)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert all_bytes(run) == before


@pytest.mark.parametrize("weights", ["vae", "vae_ema"])
def test_a_damaged_checkpoint_of_an_autoencoder(copied, capsys, weights):
    run = copied / "autoencoder"
    flip_a_bit(run / "checkpoint-2" / weights / "diffusion_pytorch_model.safetensors")
    config = short_autoencoder(copied, **STEPS, learning_rate=0.5)
    assert_refused(run, config, "is damaged, its checksum differs", capsys)


def test_an_autoencoder_of_another_shape(copied, capsys):
    config = short_autoencoder(copied, **STEPS, latent_channels=2)
    assert_refused(copied / "autoencoder", config, "is damaged or of another training", capsys)


@pytest.mark.parametrize("name", ["denoiser", "cached"])
def test_a_damaged_checkpoint_of_a_denoiser(copied, capsys, name):
    flip_a_bit(copied / name / "checkpoint-2" / "unet_optimizer.safetensors")
    latents = CACHED | {"latents": str(copied / "cache")} if name == "cached" else {}
    places = {"output_dir": str(copied / name)}
    config = short_denoiser(copied, **STEPS | {"learning_rate": 0.5} | latents | places)
    assert_refused(copied / name, config, "is damaged, its checksum differs", capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "other"}, "of another training"),
        ({"max_train_samples": 30}, "the latents are not those"),
        ({"conditional": False}, "is damaged or of another training"),
        ({"encode_every_step": True, "conditional": False}, "is damaged or of another training"),
    ],
)
def test_a_denoiser_that_encodes_at_its_start(copied, capsys, changes, message):
    if "vae" in changes:
        changes = {"vae": str(copied / changes["vae"])}
    config = short_denoiser(copied, **STEPS | changes)
    assert_refused(copied / "denoiser", config, message, capsys)


@pytest.mark.parametrize("options", [{}, STREAM])
def test_a_denoiser_on_a_cache(copied, capsys, options):
    settings = STEPS | CACHED | options | {"output_dir": str(copied / "cached")}
    for changes, message in (
        ({"latents": str(copied / "fewer")}, "the latents are not those"),
        ({"vae": str(copied / "other")}, "another autoencoder"),
        ({"conditional": False}, "is damaged or of another training"),
    ):
        config = short_denoiser(copied, **{"latents": str(copied / "cache"), **settings, **changes})
        assert_refused(copied / "cached", config, message, capsys)
    flip_a_bit(next((copied / "cache").glob("validation-*")))
    config = short_denoiser(copied, **settings, latents=str(copied / "cache"))
    assert_refused(copied / "cached", config, "is damaged", capsys)
