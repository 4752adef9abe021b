import pytest

from hf_latent.command import parse_config
from hf_latent.errors import UserError
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.config import EncodeConfig

NEEDED = {"vae": "v", "output_dir": "o"}


@pytest.mark.parametrize("name", ["encode_batch_size", "shard_rows", "max_validation_samples"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_1_are_refused(name, value):
    with pytest.raises(UserError, match=f"--{name} must be a whole number above 0, not {value}"):
        EncodeConfig(**NEEDED, **{name: value})


def test_a_negative_number_of_readers_is_refused():
    with pytest.raises(UserError, match=r"--dataloader_num_workers must be .* at least 0"):
        EncodeConfig(**NEEDED, dataloader_num_workers=-1)


def test_random_crops_are_refused_with_the_alternative():
    with pytest.raises(UserError, match="--encode_every_step true"):
        EncodeConfig(**NEEDED, crop="random")


def test_unknown_dtypes_are_refused_by_the_command():
    with pytest.raises(UserError, match="--dtype"):
        parse_config(EncodeConfig, ["--vae", "v", "--output_dir", "o", "--dtype", "bfloat16"])


def test_rare_settings_are_unset_by_default():
    config = parse_config(EncodeConfig, ["--vae", "v", "--output_dir", "o"])
    assert config == EncodeConfig(**NEEDED)
    assert config.shard_rows is config.max_validation_samples is None
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random"}, "--crop random does not go with latents that are encoded once"),
        ({"crop": "random", "latents": "cache"}, "--crop random does not go"),
        ({"encode_every_step": True, "latents": "cache"}, "--encode_every_step reads no --latents"),
        (
            {"stream_latents": True, "latents": "cache", "latents_on_device": True},
            "--latents_on_device does not go with --stream_latents: remove one of them",
        ),
        (
            {"encode_every_step": True, "latents_on_device": True},
            "--latents_on_device does not go with --encode_every_step: remove one of them",
        ),
        ({"stream_latents": True}, "--stream_latents needs the cache to read: pass --latents"),
        ({"latents": "cache", "max_train_samples": 5}, "--max_train_samples does not go with"),
        ({"stream_lanes": 0}, "--stream_lanes must be a whole number above 0"),
        ({"stream_buffer_rows": 0}, "--stream_buffer_rows must be a whole number above 0"),
    ],
)
def test_a_training_refuses_settings_that_exclude_each_other(changes, message):
    with pytest.raises(UserError) as error:
        DenoiserConfig(**NEEDED, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_random_crops_are_allowed_if_images_are_encoded_at_every_step():
    DenoiserConfig(**NEEDED, crop="random", encode_every_step=True)
    DenoiserConfig(**NEEDED, latents="cache", stream_latents=True)


@pytest.mark.parametrize(("given", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_latents_on_device_is_auto_or_a_switch(given, value):
    words = ["--vae", "v", "--output_dir", "o"]
    assert parse_config(DenoiserConfig, words).latents_on_device == "auto"
    config = parse_config(DenoiserConfig, [*words, "--latents_on_device", given])
    assert config.latents_on_device == value
