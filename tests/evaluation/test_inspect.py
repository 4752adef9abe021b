"""The whole command, and its verdict on four autoencoders with an obvious quality."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from hf_latent.cli import main
from hf_latent.data.fashion_mnist import load_fashion_mnist_sample
from hf_latent.errors import UserError
from hf_latent.evaluation.inspect import InspectConfig, inspect_autoencoders
from hf_latent.models.fold import LatentStatistics, fold_latent_scale, unfold_latent_scale
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import create_autoencoder
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from tests.conftest import make_autoencoder

CLOTHES = {"data": "fashion_mnist", "resize_mode": "pad", "max_images": 100}
PICTURES = ("worst", "channels", "interpolation", "latent_noise", "frequencies")


def inspect(vae: str, folder, **changes):
    config = InspectConfig(
        **CLOTHES | {"feature_extractor": "none"}, vae=vae, output_dir=str(folder)
    )
    return inspect_autoencoders(replace(config, **changes))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The report on fashion-mnist-f4, with all figures."""
    folder = tmp_path_factory.mktemp("inspect") / "out"
    return inspect("fashion-mnist-f4", folder, feature_extractor="efficientnet-lite0"), folder


def test_the_released_autoencoder_is_fine(released):
    report, _ = released
    assert report["verdict"] == "fine"


def test_the_released_autoencoder_keeps_structure_and_drops_pixel_noise(released):
    report, _ = released
    assert report["band_kept"][0] > 0.99
    assert report["layout_agreement"] > 0.99
    assert report["edge_agreement"] > 0.95
    assert report["noise_survival"] < 0.25
    assert report["noise_agreement"] < 0.5
    kept = report["band_kept"]
    assert kept[-1] == min(kept)  # the finest detail loses most


def test_compression_ratio_sizes_and_rate(released):
    report, _ = released
    assert report["compression_ratio"] == 4
    assert report["latents_float32_mb_per_100000"] == pytest.approx(256 * 4 * 1e5 / 1e6)
    assert report["images_uint8_mb_per_100000"] == pytest.approx(1024 * 1e5 / 1e6)
    assert 0 < report["rate_bits_per_pixel"] <= report["kl_bits_per_pixel"]
    # The card's figure, in nats per latent value, is of all 10,000 test images.
    nats = report["kl_bits_per_pixel"] * 1024 / 256 * math.log(2)
    assert nats == pytest.approx(2.783, rel=0.05)
    assert report["budget_bytes"] == pytest.approx(report["rate_bits_per_pixel"] * 1024 / 8)


def test_the_released_autoencoder_beats_jpeg_and_resampling(released):
    report, _ = released
    rows = {row["name"]: row for row in report["yardsticks"]}
    assert rows["autoencoder"]["psnr_db"] > rows["JPEG"]["psnr_db"] > rows["bicubic"]["psnr_db"]


def test_report_and_pictures_are_complete(released):
    report, folder = released
    text = (folder / "report.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["vae_sha256"] == report["vae_sha256"]
    markdown = (folder / "report.md").read_text()
    for name in PICTURES:
        assert Image.open(folder / f"{name}.png").width > 100
        assert f"({name}.png)" in markdown
    assert set(re.findall(r"\((\w+\.png)\)", markdown)) == {f"{name}.png" for name in PICTURES}
    assert f"{report['psnr_db']:.2f} dB" in markdown
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "report.md",
        *(f"{name}.png" for name in PICTURES),
    }
    assert report["round_trip_seconds"] > 0


def test_an_autoencoder_without_its_scaling_factor_is_badly_scaled(tmp_path):
    vae = unfold_latent_scale(load_autoencoder("fashion-mnist-f4"))
    # Latents of deviation 5.5, as Stable Diffusion's have without their scaling_factor.
    statistics = LatentStatistics(torch.zeros(4).double(), torch.full((4,), 0.18215).double())
    fold_latent_scale(vae, statistics).save_pretrained(tmp_path / "vae")
    report = inspect(str(tmp_path / "vae"), tmp_path / "out")
    assert report["verdict"] == "badly scaled"
    assert min(report["latent_std"]) > 4
    assert report["edge_agreement"] > 0.95  # nothing else is wrong with it


def test_an_autoencoder_with_its_scaling_factor_is_fine(tmp_path):
    vae = unfold_latent_scale(load_autoencoder("fashion-mnist-f4"))
    statistics = LatentStatistics(torch.zeros(4).double(), torch.full((4,), 0.18215).double())
    vae = fold_latent_scale(vae, statistics)
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(tmp_path / "vae")
    assert inspect(str(tmp_path / "vae"), tmp_path / "out")["verdict"] == "fine"


def test_an_untrained_autoencoder_is_broken(tmp_path):
    torch.manual_seed(0)
    create_autoencoder("tiny", 1, 32).save_pretrained(tmp_path / "vae")
    assert inspect(str(tmp_path / "vae"), tmp_path / "out")["verdict"] == "broken"


@pytest.mark.slow
def test_an_autoencoder_with_f16_and_one_channel_is_over_compressed(tmp_path):
    train_autoencoder(
        AutoencoderConfig(
            data="fashion_mnist",
            resize_mode="pad",
            max_train_samples=3000,
            block_out_channels=[8, 16, 16, 16, 16],
            latent_channels=1,
            fold_samples=300,
            train_batch_size=8,
            learning_rate=4e-3,
            kl_weight=1e-4,
            max_train_steps=100,
            validation_steps=100,
            max_validation_samples=32,
            output_dir=str(tmp_path / "run"),
        )
    )
    report = inspect(str(tmp_path / "run" / "model"), tmp_path / "out")
    assert report["verdict"] == "over-compressed"
    assert report["compression_ratio"] == 256
    assert any("edges are lost" in reason for reason in report["reasons"])


@pytest.mark.slow
def test_a_short_training_on_colours_is_called_under_trained(tmp_path):
    """It was called over-compressed, though the latents have room for more."""
    clothes = load_fashion_mnist_sample()["train"].select(range(600))["image"]
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(clothes):
        colour = generator.uniform(0.2, 1, 3)
        array = (np.asarray(image)[:, :, None] * colour).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / "images" / f"{number}.png")
    images = {"data": str(tmp_path / "images"), "resize_mode": "pad", "resolution": 32}
    train_autoencoder(
        AutoencoderConfig(
            **images,
            block_out_channels=[8, 16, 16],
            initialization="random",
            fold_samples=100,
            train_batch_size=8,
            learning_rate=4e-3,
            max_train_steps=60,
            validation_steps=60,
            max_validation_samples=32,
            output_dir=str(tmp_path / "run"),
        )
    )
    report = inspect(str(tmp_path / "run" / "model"), tmp_path / "out", **images)
    assert report["verdict"] == "under-trained"
    assert report["bicubic_advantage_db"] > 0
    assert "bicubic resampling to as many values" in report["reasons"][0]
    trained = json.loads((tmp_path / "run" / "report.json").read_text())
    assert trained["held_out_psnr_db"] < trained["held_out_bicubic_psnr_db"]
    assert trained["held_out_chroma_r2"] < trained["held_out_luma_r2"]


def test_a_latent_as_large_as_the_image_is_not_called_under_trained(tmp_path):
    make_autoencoder(sample_size=32, latent_channels=16).save_pretrained(tmp_path / "vae")
    report = inspect(str(tmp_path / "vae"), tmp_path / "out")
    assert report["compression_ratio"] == 1
    assert "bicubic_advantage_db" not in report


def test_the_emoji_autoencoder_on_rgba_noise(tmp_path):
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        pixels = (torch.rand(70, 64, 4, generator=generator) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    report = inspect(
        "emoji", tmp_path / "out", data=str(folder), resize_mode="crop", validation_fraction=0.3
    )
    assert report["preprocessing"] == "crop to 64x64, 4 channels"
    assert {"grey_psnr_db", "alpha_psnr_db"} <= set(report)
    assert report["verdict"] != "fine"  # it was not trained on noise


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--vae nowhere/vae", "nowhere/vae"),
        ("--vae fashion-mnist-f4 --resolution 30", "multiples of"),
        ("--vae fashion-mnist-f4 --channels 3", "3 channels"),
        ("--vae fashion-mnist-f4 --data nowhere", "nowhere"),
        ("--vae fashion-mnist-f4 --max_images 0", "--max_images"),
        ("--vae fashion-mnist-f4 --max_images 1", "too few"),
        ("--vae fashion-mnist-f4 --feature_extractor vgg", "--feature_extractor"),
        ("--vae fashion-mnist-f4 --resolution 3,4,5", "--resolution"),
    ],
)
def test_user_errors_are_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "--output_dir", "out", *flags.split()])
    assert stop.value.code == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_tiny_has_no_rate_and_needs_a_resolution(tmp_path):
    torch.manual_seed(0)
    AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="--resolution is needed"):
        inspect(str(tmp_path / "vae"), tmp_path / "out")
    report = inspect(str(tmp_path / "vae"), tmp_path / "out", resolution=32)
    assert report["verdict"] == "broken"  # it is not trained
    assert not {"kl_bits_per_pixel", "rate_bits_per_pixel"} & set(report)
    assert report["budget_bytes"] == report["latent_values"] == 256
    assert "rate" not in (tmp_path / "out" / "report.md").read_text()
