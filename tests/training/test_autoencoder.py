import json
import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from hf_latent.command import parse_config
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.images.summary import DataSummary
from hf_latent.errors import UserError
from hf_latent.evaluation.features.networks import load_feature_network
from hf_latent.evaluation.pictures import GAP
from hf_latent.models.fold import FOLDED_MEAN, measure_latents, sum_latents, unfold_latent_scale
from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import IMAGE_SIZE
from hf_latent.pipeline.encode import encode_images, encode_posteriors
from hf_latent.training import autoencoder
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.losses import kl_per_latent_value, perceptual_loss, reconstruction_loss
from hf_latent.training.run.batches import ProcessRows, ShardedDraws
from hf_latent.training.start.autoencoder import TrainableAutoencoder, start_autoencoder
from tests.conftest import make_autoencoder
from tests.training.conftest import first_batch

WITH_DISCRIMINATOR = {
    "discriminator_weight": 0.5,
    "discriminator_base_channels": 8,
    "discriminator_num_layers": 2,
}
NETWORK = "efficientnet-lite0"


def test_plain_diffusers_loads_what_the_fast_preset_trained(autoencoder_config):
    config = autoencoder_config(preset="base-fast", **WITH_DISCRIMINATOR)
    summary = train_autoencoder(config)
    vae = AutoencoderKL.from_pretrained(summary.model_dir, use_safetensors=True)
    assert tuple(vae.config.block_out_channels) == (16, 32, 64, 128)
    assert vae.config.norm_num_groups == 2 and vae.config.layers_per_block == 1
    assert vae.config.scaling_factor == 1 and FOLDED_MEAN in vae.config
    assert summary.held_out.dead_channels == []
    torch.testing.assert_close(summary.residual_std, [1.0] * 4, rtol=0, atol=0.3)


def test_a_run_leaves_a_folded_autoencoder_and_its_log(autoencoder_config, tmp_path):
    config = autoencoder_config()
    summary = train_autoencoder(config)
    run = tmp_path / "autoencoder"
    assert summary.model_dir == run / "model"
    assert summary.steps == 4
    assert sorted(p.name for p in run.iterdir()) == [
        "config.yaml",
        "logs",
        "model",
        "report.html",
        "report.json",
        "samples",
    ]
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "step-000002.png",
        "step-000004.png",
    ]
    assert Image.open(run / "samples" / "step-000004.png").size == (8 * 64 + 3 * GAP, 3 * 64)
    lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert sorted(summary.validation_losses) == [2, 4]
    assert lines[-1]["kl_nats_per_latent_value"] == summary.held_out.kl_nats_per_latent_value > 0

    vae = AutoencoderKL.from_pretrained(run / "model", use_safetensors=True)
    splits = open_images(config)
    with torch.no_grad():
        posteriors = encode_posteriors(vae, splits.train.read())
    mean, std = posteriors.mean, posteriors.std
    variance = mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(4), rtol=1e-4, atol=0)

    saved = parse_config(AutoencoderConfig, ["--config", str(run / "config.yaml")])
    assert saved.validation_fingerprint == splits.validation_fingerprint
    assert saved.max_train_steps == 4


def test_training_lowers_the_held_out_loss(autoencoder_config):
    summary = train_autoencoder(
        autoencoder_config(
            max_train_steps=40, validation_steps=2, learning_rate=3e-3, ema_decay=0.8
        )
    )
    losses = list(summary.validation_losses.values())
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(autoencoder_config, tmp_path):
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        summary = train_autoencoder(
            autoencoder_config(seed=seed, output_dir=str(tmp_path / name), max_train_steps=2)
        )
        hashes.append(hash_weights(AutoencoderKL.from_pretrained(summary.model_dir)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_trainable_autoencoder_samples_the_posterior_with_given_noise(images):
    vae = make_autoencoder()
    noise = torch.randn(4, 4, 4, 4)
    reconstructions, mean, logvar, _ = TrainableAutoencoder(vae)(images, noise)
    posterior = vae.encode(images).latent_dist
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(logvar, posterior.logvar)
    expected = vae.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(reconstructions, expected)


def test_the_perceptual_gradient_reaches_the_encoder():
    vae, network = make_autoencoder(sample_size=32).train(), load_feature_network(NETWORK)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    # Only the posterior's mean: no other loss and no noise brings a gradient.
    reconstructions, *_ = TrainableAutoencoder(vae)(images, torch.zeros(2, 4, 8, 8))
    perceptual_loss(network, reconstructions, images).backward()
    for name, parameter in vae.encoder.named_parameters():
        if name == "conv_out.bias":  # half of it belongs to the log-variance
            continue
        assert parameter.grad.abs().max() > 1e-7, name
    assert vae.encoder.conv_in.weight.grad.norm() > 1e-3


def test_the_perceptual_weight_changes_the_trained_encoder(autoencoder_config, tmp_path):
    config = autoencoder_config(
        initialization="random",
        perceptual_network=NETWORK,
        perceptual_weight=3.0,
        kl_weight=0.1,
        reconstruction_loss="l2",
        max_train_steps=1,
        checkpointing_steps=1,
        lr_warmup_ratio=0.0,
        max_grad_norm=1e9,
    )
    summary = train_autoencoder(config)
    # Adam's first moment after one step is a tenth of the gradient.
    vae = start_autoencoder(config, (1, 32, 32))
    images, noise = first_batch(config)
    reconstructions, mean, logvar, _ = TrainableAutoencoder(vae)(images, noise)
    loss = (reconstructions - images).square().mean() + 0.1 * kl_per_latent_value(mean, logvar)
    distance = perceptual_loss(load_feature_network(NETWORK), reconstructions, images)
    (loss + 3.0 * distance).backward()
    moments = load_file(tmp_path / "autoencoder" / "checkpoint-1" / "vae_optimizer.safetensors")
    for name, parameter in vae.named_parameters():
        found = moments[f"{name}.exp_avg"] * 10
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert summary.held_out.perceptual_distance > 0.1
    assert summary.train_loss == pytest.approx((loss + 3.0 * distance).item(), rel=1e-4)


def test_a_network_without_weight_only_measures(autoencoder_config, tmp_path):
    watched = train_autoencoder(autoencoder_config(perceptual_network=NETWORK))
    plain = train_autoencoder(autoencoder_config(output_dir=str(tmp_path / "plain")))
    assert watched.held_out.perceptual_distance > 0.1
    assert plain.held_out.perceptual_distance is None
    one, other = (AutoencoderKL.from_pretrained(run.model_dir) for run in (watched, plain))
    assert hash_weights(one) == hash_weights(other)


@pytest.fixture
def another_precision():
    """Reset Accelerate, which allows one precision per process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_weights_stay_float32_under_bf16(autoencoder_config, tmp_path, another_precision):
    seen = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            seen.add(output.dtype) if isinstance(module, torch.nn.Conv2d) else None
        )
    )
    config = autoencoder_config(
        **WITH_DISCRIMINATOR,
        initialization="random",  # its latents are mostly noise, of the same deviation everywhere
        mixed_precision="bf16",
        perceptual_network=NETWORK,
        perceptual_weight=0.5,
        max_train_steps=2,
        checkpointing_steps=2,
    )
    try:
        summary = train_autoencoder(config)
    finally:
        hook.remove()
    assert torch.bfloat16 in seen, "nothing ran in half precision"
    run = tmp_path / "autoencoder"
    files = [*run.glob("checkpoint-2/**/*.safetensors"), *run.glob("model/*.safetensors")]
    assert len(files) == 6
    for file in files:
        for name, tensor in load_file(file).items():
            assert tensor.dtype == torch.float32, name
            assert tensor.isfinite().all(), name
    assert math.isfinite(summary.train_loss)
    assert summary.residual_std == pytest.approx([1.0] * 4, abs=0.2)


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def test_accumulation_of_2_equals_one_batch_of_both(autoencoder_config, tmp_path, monkeypatch):
    checkpoints = []
    for parts in (1, 2):

        class InParts(ShardedDraws):
            """Both micro-steps share the noise of one batch."""

            def normal(self, place, *shape):
                step, part = place
                whole = ShardedDraws(0, "posterior", ProcessRows(8), torch.device("cpu"))
                return whole.normal((step, 0), *shape).split(self.rows.batch_size)[part]

        monkeypatch.setattr(autoencoder, "ShardedDraws", InParts)
        config = autoencoder_config(
            **WITH_DISCRIMINATOR,
            # A linear start has gradients of nearly 0, whose rounding Adam amplifies.
            initialization="random",
            output_dir=str(tmp_path / str(parts)),
            train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            max_train_steps=2,
            checkpointing_steps=2,
            lr_warmup_ratio=0.0,
        )
        train_autoencoder(config)
        checkpoints.append(tmp_path / str(parts) / "checkpoint-2")
    for name in ("vae", "vae_ema", "discriminator"):
        whole, parts = (
            load_file(path / name / "diffusion_pytorch_model.safetensors") for path in checkpoints
        )
        for key, tensor in parts.items():
            # Adam amplifies the rounding of gradients of nearly 0, such as those of the
            # discriminator's biases.
            if name != "discriminator" or tensor.ndim == 4:
                assert relative_difference(tensor, whole[key]) < 1e-3, key
    for name in ("vae", "discriminator"):
        whole, parts = (load_file(path / f"{name}_optimizer.safetensors") for path in checkpoints)
        for key, moment in parts.items():
            torch.testing.assert_close(moment, whole[key], rtol=1e-4, atol=1e-6, msg=key)
    weights = [
        json.loads((path / "state.json").read_text())["others"]["adversary"]["adversarial_weight"]
        for path in checkpoints
    ]
    assert weights[1] == pytest.approx(weights[0], rel=1e-5)
    assert weights[0] > 1e-2


class MadeUpImages(torch.utils.data.Dataset):
    """Random images of any shape, with `ImageDataset`'s interface."""

    config = ImagesConfig()

    def __init__(self, count: int, shape: tuple[int, int, int]):
        self.image_shape = shape
        self.images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        return {"images": self.images[index] * 2 - 1}

    def evenly_spaced(self, count):
        view = self.view(False)
        count = min(count, len(self))
        view.images = self.images[torch.arange(count) * len(self) // count]
        return view

    def read(self):
        return self.images * 2 - 1

    def view(self, mirrored):
        view = object.__new__(MadeUpImages)
        view.image_shape = self.image_shape
        view.images = self.images.flip(3) if mirrored else self.images
        return view


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_any_number_of_channels(autoencoder_config, channels):
    shape = (channels, 32, 32)
    train, held_out = MadeUpImages(20, shape), MadeUpImages(9, shape)
    splits = ImageSplits(train, held_out, None, "0" * 16, DataSummary())
    config = autoencoder_config(
        **WITH_DISCRIMINATOR,
        max_train_steps=2,
        perceptual_network=NETWORK,
        perceptual_weight=0.1,
    )
    summary = train_autoencoder(config, splits)
    vae = AutoencoderKL.from_pretrained(summary.model_dir, use_safetensors=True)
    assert vae.config.in_channels == vae.config.out_channels == channels
    images = torch.stack([splits.validation[i]["images"] for i in range(9)])
    latents = encode_images(vae, images, torch.Generator().manual_seed(0))
    c = 4 if channels == 1 else 8
    assert latents.shape == (9, c, 8, 8)
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1] * c, abs=0.2)
    assert math.isfinite(summary.held_out.reconstruction.psnr_db)
    assert (summary.held_out.reconstruction.alpha_psnr_db is not None) == (channels == 4)


def test_16_bit_images_of_48_by_80_pixels(autoencoder_config, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 2**16, (48, 80), dtype=np.uint16)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    config = autoencoder_config(
        **WITH_DISCRIMINATOR,
        data=str(folder),
        resolution="48,80",
        resize_mode="crop",
        validation_fraction=0.2,
        max_train_steps=2,
        perceptual_network=NETWORK,
        perceptual_weight=0.1,
    )
    summary = train_autoencoder(config)
    vae = AutoencoderKL.from_pretrained(summary.model_dir, use_safetensors=True)
    assert (vae.config.in_channels, vae.config.sample_size) == (1, 80)
    assert vae.config[IMAGE_SIZE] == [48, 80]
    image = open_images(config).train[0]["images"]
    assert len(image.unique()) > 2000, "8 bits have 256 values"
    assert encode_images(vae, image[None]).shape == (1, 4, 12, 20)
    assert math.isfinite(summary.held_out.reconstruction.psnr_db)


def test_the_scale_can_be_measured_on_some_images(autoencoder_config, tmp_path):
    whole = train_autoencoder(autoencoder_config(output_dir=str(tmp_path / "whole")))
    some = train_autoencoder(autoencoder_config(output_dir=str(tmp_path / "some"), fold_samples=11))
    vaes = [AutoencoderKL.from_pretrained(run.model_dir) for run in (whole, some)]
    train = open_images(autoencoder_config()).train
    for vae, count in zip(vaes, (40, 11), strict=True):
        measured_on = train.evenly_spaced(count)
        images = torch.stack([measured_on[i]["images"] for i in range(count)])
        with torch.no_grad():
            posterior = unfold_latent_scale(vae).encode(images).latent_dist
        expected = measure_latents(sum_latents(posterior))
        assert vae.config[FOLDED_MEAN] == pytest.approx(expected.mean.tolist(), abs=1e-5)
    assert vaes[0].config[FOLDED_MEAN] != pytest.approx(vaes[1].config[FOLDED_MEAN], abs=1e-4)


def test_the_report_has_settings_and_figures(autoencoder_config, tmp_path):
    config = autoencoder_config(**WITH_DISCRIMINATOR, max_train_steps=6)
    summary = train_autoencoder(config)
    report = json.loads((tmp_path / "autoencoder" / "report.json").read_text())
    splits = open_images(config)
    assert report["kl_weight"] == config.kl_weight
    assert report["validation_fingerprint"] == splits.validation_fingerprint
    assert report["train_images"] == 40
    assert report["steps"] == 6
    assert not [name for name, value in report.items() if isinstance(value, dict)], "it is flat"
    for name, value in summary.held_out.scalars().items():
        assert report[f"held_out_{name}"] == value, name
    assert report["held_out_images"] == 12
    # The residual is that of held-out images, encoded with the saved autoencoder.
    vae = AutoencoderKL.from_pretrained(summary.model_dir)
    held_out = splits.validation.evenly_spaced(12)
    images = torch.stack([held_out[i]["images"] for i in range(12)])
    with torch.no_grad():
        expected = measure_latents(sum_latents(vae.encode(images).latent_dist))
    assert report["residual_mean"] == pytest.approx(expected.mean.tolist(), abs=1e-5)
    assert report["residual_std"] == pytest.approx(expected.std.tolist(), abs=1e-5)
    assert report["residual_mean"] == pytest.approx([0] * 4, abs=0.3)
    assert report["residual_std"] == pytest.approx([1] * 4, abs=0.3)
    assert summary.residual_mean != [0.0] * 4, "measured on the images of the fold"
    # Before the fold.
    before = unfold_latent_scale(vae)
    with torch.no_grad():
        posterior = before.encode(images).latent_dist
        reconstructions = before.decode(posterior.mean).sample
    kl = kl_per_latent_value(posterior.mean, posterior.logvar).item()
    loss = reconstruction_loss(reconstructions, images).item()
    assert report["held_out_kl_nats_per_latent_value"] == pytest.approx(kl, rel=1e-3)
    assert report["held_out_loss"] == pytest.approx(loss, rel=1e-3)


def test_the_report_of_images_without_ssim_is_json(autoencoder_config, tmp_path):
    summary = train_autoencoder(autoencoder_config(resolution=8, resize_mode="crop"))
    assert math.isnan(summary.held_out.reconstruction.ssim), "too small to have one"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "autoencoder" / "report.json").read_text()
    report = json.loads(text, parse_constant=refuse)
    assert "held_out_ssim" not in report
    assert report["held_out_psnr_db"] == summary.held_out.reconstruction.psnr_db
    for line in (tmp_path / "autoencoder" / "logs" / "losses.jsonl").open():
        json.loads(line, parse_constant=refuse)


def test_rgb_images_of_any_shape(autoencoder_config, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (60, 40 + i), (20 * i, 255 - 20 * i, 99)).save(folder / f"{i}.png")
    config = autoencoder_config(
        data=str(folder),
        resolution="24,40",
        resize_mode="crop",
        horizontal_flip=True,
        latent_channels=2,
        max_train_steps=2,
        gradient_accumulation_steps=2,
    )
    vae = AutoencoderKL.from_pretrained(train_autoencoder(config).model_dir)
    assert (vae.config.in_channels, vae.config.latent_channels) == (3, 2)
    splits = open_images(config)
    posterior = vae.encode(splits.train[0]["images"][None]).latent_dist
    assert measure_latents(sum_latents(posterior)).mean.shape == (2,)
    assert posterior.mean.shape == (1, 2, 6, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 30}, "multiples of its downsampling factor 4"),
        ({"train_batch_size": 0}, "--train_batch_size must be a whole number above 0"),
        ({"lr_warmup_ratio": 1.0}, "--lr_warmup_ratio"),
        ({"max_train_minutes": 0.0}, "--max_train_minutes"),
        ({"ema_decay": 1.0}, "--ema_decay"),
        ({"data": "/nowhere/photos"}, "/nowhere/photos"),
        ({"validation_fingerprint": "0" * 16}, "fingerprint"),
        ({"perceptual_weight": 1.0}, "--perceptual_weight needs a --perceptual_network"),
        ({"train_decoder_only": True}, "--train_decoder_only needs a --pretrained_vae"),
        (
            {"pretrained_vae": "x", "latent_channels": 2, "layers_per_block": 1},
            "--latent_channels, --layers_per_block cannot change a --pretrained_vae",
        ),
        ({"pretrained_vae": "x", "block_out_channels": [8, 8]}, "--block_out_channels cannot"),
        ({"pretrained_vae": "/nowhere/vae"}, "no autoencoder found at /nowhere/vae"),
        ({"kl_weight": -1.0}, "--kl_weight must be a number at least 0, not -1.0"),
        ({"perceptual_weight": -1.0}, "--perceptual_weight must be a number at least 0"),
        ({"discriminator_weight": -0.1}, "--discriminator_weight must be a number at least 0"),
        ({"discriminator_start": -1}, "--discriminator_start must be a whole number at least 0"),
        (
            {"discriminator_weight": 0.5, "discriminator_start": 4},
            "--discriminator_start 4 must be below --max_train_steps 4",
        ),
        ({"discriminator_weight": 0.5, "discriminator_start": 9}, "--discriminator_start 9 must"),
        (
            {"discriminator_num_layers": 0},
            "--discriminator_num_layers must be a whole",
        ),
        (
            {"discriminator_weight": 0.5, "resolution": 16},
            "16x16 are too small for a discriminator with 3 layers, which needs 24 pixels",
        ),
        ({"fold_samples": 0}, "--fold_samples must be a whole number above 0"),
    ],
)
def test_rejected_settings_leave_no_folder(autoencoder_config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train_autoencoder(autoencoder_config(**changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "autoencoder").exists()


def test_small_images_are_trained_on_without_a_discriminator(autoencoder_config):
    small = {"resolution": 16, "resize_mode": "crop", "max_train_steps": 1}
    with pytest.raises(UserError, match="16x16 are too small for a discriminator"):
        train_autoencoder(autoencoder_config(**small, discriminator_weight=0.5))
    assert train_autoencoder(autoencoder_config(**small)).steps == 1


def test_a_run_does_not_write_over_another(autoencoder_config, tmp_path):
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has files in it"):
        train_autoencoder(autoencoder_config())
    assert [p.name for p in (tmp_path / "autoencoder").iterdir()] == ["notes.txt"]
