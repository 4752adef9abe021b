"""Every kind of autoencoder, from images to latents, a training, a saved model and images."""

import json

import diffusers
import pytest
import torch

from hf_latent.errors import UserError
from hf_latent.evaluation.inspect import InspectConfig, inspect_autoencoders
from hf_latent.hub.card.render import render_model_card
from hf_latent.hub.stock_pipeline import to_stock_pipeline
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import measure_compression
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import (
    KINDS,
    denormalize_latents,
    downsampling_factor,
    latent_channels,
    normalize_latents,
)
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images, encode_posteriors
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents.posteriors import encode_batches
from tests import small
from tests.autoencoder_kinds import CONFIGS, STOCK, make_kind, make_kind_pipeline

CLOTHES = {"data": "fashion_mnist", "resize_mode": "pad", "channels": 3, "resolution": 32}
# One of each class.
CLASSES = list({class_name: name for name, (class_name, _) in CONFIGS.items()}.values())


@pytest.fixture(autouse=True, scope="module")
def small_trainings():
    with small.small_trainings():
        yield


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_every_class_of_the_table_is_tried_here_and_is_one_of_diffusers():
    assert {class_name for class_name, _ in CONFIGS.values()} == set(KINDS)
    assert CONFIGS.keys() == STOCK.keys()
    assert all(hasattr(diffusers, name) for name in KINDS)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_latents_and_images_are_those_of_the_stock_pipeline(name, images):
    vae, (encode, decode) = make_kind(name), STOCK[name]
    latents = encode_images(vae, images, sample_posterior=False)
    side = 32 // downsampling_factor(vae)
    assert latents.shape == (2, latent_channels(vae), side, side)
    assert latents.shape[1:] == measure_compression(vae, (3, 32, 32)).latent_shape
    torch.testing.assert_close(latents, encode(vae, images), rtol=1e-5, atol=1e-5)
    decoded = decode_latents(vae, latents)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, decode(vae, latents), rtol=1e-5, atol=1e-5)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    raw = denormalize_latents(vae, noise)
    torch.testing.assert_close(normalize_latents(vae, raw), noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_posterior_samples_are_normalised_as_the_encoders_are(name, images):
    vae = make_kind(name)
    posteriors = encode_posteriors(vae, images)
    ((mean, std),) = encode_batches(vae, [images], False, torch.float32)  # for the latent cache
    torch.testing.assert_close(mean[:, 0], posteriors.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std[:, 0], posteriors.std, rtol=1e-4, atol=1e-5)
    if not KINDS[CONFIGS[name][0]].has_posterior:
        assert not posteriors.std.any()
        return
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    expected = normalize_latents(vae, posterior.mean + posterior.std * noise)
    sample = posteriors.sample(KINDS[CONFIGS[name][0]].to_patches(noise))
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)


# f and c of published autoencoders, by the entries of their configuration that decide them.
PUBLISHED = {
    "FLUX.1": ("AutoencoderKL", {"latent_channels": 16}, 8, 16),
    "FLUX.2": ("AutoencoderKLFlux2", {}, 16, 128),
    "TAESD": ("AutoencoderTiny", {}, 8, 4),
    "DC-AE f32": ("AutoencoderDC", {}, 32, 32),
    "DC-AE f64": ("AutoencoderDC", {"latent_channels": 128, "levels": 7}, 64, 128),
    "LDM vq-f4": ("VQModel", {"latent_channels": 3}, 4, 3),
    "RAE": ("AutoencoderRAE", {}, 16, 768),
}
LEVELS = {"AutoencoderKL": 4, "VQModel": 3}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_latents_of_published_autoencoders_have_the_known_size(name):
    class_name, config, f, c = PUBLISHED[name]
    levels = config.pop("levels", LEVELS.get(class_name))
    if class_name == "AutoencoderDC" and levels:
        for part in ("encoder", "decoder"):
            config[f"{part}_block_out_channels"] = (128,) * levels
            config[f"{part}_layers_per_block"] = (1,) * levels
            config[f"{part}_qkv_multiscales"] = ((),) * levels
    elif levels:
        config["block_out_channels"] = (32,) * levels
        config["down_block_types"] = ("DownEncoderBlock2D",) * levels
        config["up_block_types"] = ("UpDecoderBlock2D",) * levels
    with torch.device("meta"):
        vae = getattr(diffusers, class_name)(**config)
    assert (downsampling_factor(vae), latent_channels(vae)) == (f, c)


@pytest.mark.parametrize("name", CLASSES)
def test_a_denoiser_is_trained_on_cached_latents_and_draws(name, tmp_path):
    vae = make_kind(name)
    vae.save_pretrained(tmp_path / "vae")
    config = DenoiserConfig(
        **CLOTHES,
        vae=str(tmp_path / "vae"),
        output_dir=str(tmp_path / "run"),
        max_train_samples=8,
        max_validation_samples=4,
        max_train_steps=2,
        train_batch_size=4,
        checkpointing_steps=None,
    )
    summary = train_denoiser(config)
    manifest = json.loads((tmp_path / "run" / "latents" / "manifest.json").read_text())
    side = 32 // downsampling_factor(vae)
    assert manifest["latent_shape"] == [latent_channels(vae), side, side]
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert type(pipeline.vae) is type(vae)
    assert hash_weights(pipeline.vae) == hash_weights(vae)
    assert pipeline([0], num_inference_steps=1, output_type="pt").images.shape == (1, 3, 32, 32)
    card = render_model_card(summary.model_dir)
    assert type(vae).__name__ in card and f"{latent_channels(vae)} x {side} x {side}" in card


@pytest.mark.parametrize("name", CLASSES)
def test_a_pipeline_is_saved_loaded_and_used_in_another_one(name, images, tmp_path, caplog):
    pipeline = make_kind_pipeline(name)
    pipeline.save_pretrained(tmp_path)
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    again = LatentDiffusionPipeline.from_pipe(loaded)
    assert again.vae is loaded.vae
    assert "Expected types for vae" not in caplog.text and "not switched over" not in caplog.text
    noise = torch.randn(1, *(pipeline.unet.config.in_channels, *pipeline.latent_size))
    drawn = [
        x(latents=noise, num_inference_steps=2, output_type="pt").images for x in (pipeline, again)
    ]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-6)
    expected = decode_latents(pipeline.vae, pipeline.encode_images(images, sample_posterior=False))
    torch.testing.assert_close(
        again.reconstruct(images), (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_kind_is_inspected(name, tmp_path):
    vae = make_kind(name)
    vae.save_pretrained(tmp_path / "vae")
    report = inspect_autoencoders(
        InspectConfig(
            **CLOTHES,
            vae=str(tmp_path / "vae"),
            output_dir=str(tmp_path / "out"),
            max_images=4,
            feature_extractor="none",
        )
    )
    assert report["vae_class"] == CONFIGS[name][0]
    assert report["latent_values"] == latent_channels(vae) * (32 // downsampling_factor(vae)) ** 2
    assert len(report["latent_std"]) == latent_channels(vae)
    assert ("rate_bits_per_pixel" in report) == KINDS[CONFIGS[name][0]].has_posterior


def test_the_card_of_an_autoencoder_alone_shows_how_it_encodes(tmp_path):
    shown = {
        "stable-diffusion": "vae.encode(images).latent_dist.sample()  # (1, 4, 8, 8)",
        "flux2": "vae.encode(images).latent_dist.sample()  # (1, 2, 16, 16)",
        "dc": "vae.encode(images).latent  # ",
        "vq": "vae.encode(images).latents  # (1, 4, 8, 8)",
        "rae": "vae.encode(images).latent  # (1, 64, 4, 4)",
    }
    for name, line in shown.items():
        make_kind(name).save_pretrained(tmp_path / name)
        card = render_model_card(tmp_path / name)
        assert line in card
        assert ("float in [0, 1]" in card) == (name == "rae")


def test_an_autoencoder_of_one_size_refuses_others(images):
    with pytest.raises(
        ValueError, match="64x64 do not fit the autoencoder, which takes 32x32 only"
    ):
        encode_images(make_kind("rae"), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["flux2", "rae"])
def test_stock_pipelines_do_not_know_these_scales(name):
    with pytest.raises(UserError, match="a scale of its own, which stock pipelines ignore"):
        to_stock_pipeline(make_kind_pipeline(name))


def test_other_classes_are_refused_by_name(tmp_path):
    video = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,))
    video.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"TemporalDecoder, not a AutoencoderKL or .*RAE$"):
        load_autoencoder(str(tmp_path))
    with pytest.raises(ValueError, match="is no autoencoder for images: use AutoencoderKL, "):
        encode_images(video, torch.zeros(1, 3, 32, 32))


def test_only_an_autoencoder_kl_is_trained_further(tmp_path):
    make_kind("dc").save_pretrained(tmp_path / "vae")
    config = AutoencoderConfig(
        **CLOTHES, pretrained_vae=str(tmp_path / "vae"), output_dir=str(tmp_path / "run")
    )
    with pytest.raises(UserError, match=r"is a AutoencoderDC, .*: name an AutoencoderKL"):
        train_autoencoder(config)


def test_a_compiled_autoencoder_is_of_its_models_kind(images):
    vae = make_kind("tiny")
    compiled = torch.compile(vae, backend="eager")
    assert downsampling_factor(compiled) == downsampling_factor(vae) == 4
