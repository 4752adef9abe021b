from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.models import load as models_load
from hf_latent.models.fold import FOLDED_MEAN, LatentStatistics, fold_latent_scale
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images
from hf_latent.training import autoencoder
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.dry_run.estimate import DryRunEnd
from hf_latent.training.losses import kl_per_latent_value
from hf_latent.training.start.autoencoder import (
    TrainableAutoencoder,
    start_autoencoder,
    start_linearly,
)
from tests.conftest import make_autoencoder

SHAPE = (1, 32, 32)
WITH_DISCRIMINATOR = {
    "discriminator_weight": 0.5,
    "discriminator_base_channels": 8,
    "discriminator_num_layers": 1,
}


def make_folded() -> AutoencoderKL:
    mean, std = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    return fold_latent_scale(
        make_autoencoder(sample_size=32), LatentStatistics(mean.double(), std.double())
    ).eval()


def equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    weights = other.state_dict()
    return one.state_dict().keys() == weights.keys() and all(
        torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items()
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(2, *SHAPE, generator=generator) * 2 - 1
    return images, torch.randn(2, 4, 8, 8, generator=generator)


def gradients(vae: AutoencoderKL) -> dict[str, torch.Tensor | None]:
    images, noise = batch()
    reconstructions, mean, logvar, _ = TrainableAutoencoder(vae)(images, noise)
    loss = (reconstructions - images).abs().mean() + 0.1 * kl_per_latent_value(mean, logvar)
    loss.backward()
    return {name: parameter.grad for name, parameter in vae.named_parameters()}


def test_a_preset_with_its_architecture_changed(autoencoder_config):
    vae = start_autoencoder(
        autoencoder_config(latent_channels=2, block_out_channels=[8, 16], layers_per_block=2),
        (3, 32, 48),
    )
    assert vae.config.latent_channels == 2
    assert list(vae.config.block_out_channels) == [8, 16]
    assert vae.config.layers_per_block == 2
    assert (vae.config.in_channels, vae.config.out_channels) == (3, 3)
    assert vae.training
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in vae.parameters())
    assert start_autoencoder(autoencoder_config(), SHAPE).config.latent_channels == 4


def test_a_new_autoencoder_depends_only_on_the_seed(autoencoder_config):
    torch.manual_seed(1)
    one = start_autoencoder(autoencoder_config(seed=7), SHAPE)
    torch.manual_seed(2)
    assert equal_weights(start_autoencoder(autoencoder_config(seed=7), SHAPE), one)
    assert not equal_weights(start_autoencoder(autoencoder_config(seed=8), SHAPE), one)


@pytest.mark.parametrize("folded", [False, True])
def test_a_pretrained_autoencoder_starts_unfolded(autoencoder_config, tmp_path, folded):
    original = make_autoencoder(sample_size=32)
    (make_folded() if folded else original).save_pretrained(tmp_path / "pretrained")
    vae = start_autoencoder(
        autoencoder_config(), SHAPE, load_autoencoder(str(tmp_path / "pretrained"))
    )
    assert FOLDED_MEAN not in vae.config
    assert vae.training
    assert all(parameter.requires_grad for parameter in vae.parameters())
    for (name, weight), expected in zip(vae.named_parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6, msg=name)


def test_the_autoencoder_of_a_pipeline_can_be_trained(autoencoder_config, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    vae = start_autoencoder(
        autoencoder_config(), SHAPE, load_autoencoder(str(tmp_path / "pipeline"))
    )
    assert equal_weights(vae, pipeline.vae)


def test_only_the_decoder_is_trained(autoencoder_config, tmp_path):
    folded = make_folded()
    folded.save_pretrained(tmp_path / "pretrained")
    vae = start_autoencoder(
        autoencoder_config(pretrained_vae=str(tmp_path / "pretrained"), train_decoder_only=True),
        SHAPE,
        load_autoencoder(str(tmp_path / "pretrained")),
    )
    assert equal_weights(vae, folded), "its latents keep their scale"
    found = gradients(vae)
    for name, gradient in found.items():
        frozen = name.startswith(("encoder.", "quant_conv."))
        assert (gradient is None) == frozen, name
    assert any(name.startswith("quant_conv.") for name in found)
    assert any(name.startswith("post_quant_conv.") for name in found)


@pytest.mark.parametrize("folded", [False, True])
def test_training_only_the_decoder_keeps_the_latents_bit_for_bit(
    autoencoder_config, tmp_path, folded
):
    pretrained = make_folded() if folded else make_autoencoder(sample_size=32)
    pretrained.register_to_config(scaling_factor=1.0 if folded else 0.5)
    pretrained.save_pretrained(tmp_path / "pretrained")
    config = autoencoder_config(
        pretrained_vae=str(tmp_path / "pretrained"), train_decoder_only=True, max_train_steps=2
    )
    saved = AutoencoderKL.from_pretrained(train_autoencoder(config).model_dir).eval()
    before = AutoencoderKL.from_pretrained(tmp_path / "pretrained")
    assert saved.config | {"_name_or_path": ""} == before.config | {"_name_or_path": ""}
    train = open_images(config).train
    images = torch.stack([train[index]["images"] for index in range(4)])
    with torch.no_grad():
        latents = encode_images(saved, images, sample_posterior=False)
        assert torch.equal(latents, encode_images(pretrained, images, sample_posterior=False))
        decoded, decoded_before = (decode_latents(vae, latents) for vae in (saved, pretrained))
    assert (decoded - decoded_before).abs().max() > 1e-3


def test_a_pretrained_autoencoder_is_trained_and_folded_again(
    autoencoder_config, tmp_path, monkeypatch
):
    loaded = []
    load = models_load._load
    monkeypatch.setattr(models_load, "_load", lambda *x: loaded.append(x) or load(*x))
    folded = make_folded()
    folded.save_pretrained(tmp_path / "pretrained")
    config = autoencoder_config(pretrained_vae=str(tmp_path / "pretrained"), max_train_steps=2)
    summary = train_autoencoder(config)
    saved = AutoencoderKL.from_pretrained(summary.model_dir)
    assert saved.config[FOLDED_MEAN] != folded.config[FOLDED_MEAN]
    assert not equal_weights(saved.encoder, folded.encoder)
    assert summary.residual_std == pytest.approx([1.0] * 4, abs=0.2)
    assert len(loaded) == 1


def test_an_autoencoder_without_a_posterior_is_refused(autoencoder_config, tmp_path):
    AutoencoderTiny(
        1,
        1,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "taesd")
    config = autoencoder_config(pretrained_vae=str(tmp_path / "taesd"))
    with pytest.raises(UserError, match="taesd is a AutoencoderTiny, which has no") as raised:
        train_autoencoder(config)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "autoencoder").exists()


def test_an_autoencoder_with_other_channels_is_refused(autoencoder_config, tmp_path):
    make_autoencoder(channels=3, sample_size=32).save_pretrained(tmp_path / "rgb")
    config = autoencoder_config(pretrained_vae=str(tmp_path / "rgb"))
    with pytest.raises(UserError, match="1 channels and the autoencoder takes 3"):
        train_autoencoder(config)
    assert not (tmp_path / "autoencoder").exists()


def test_gradient_checkpointing_gives_the_same_gradients(autoencoder_config):
    plain = gradients(start_autoencoder(autoencoder_config(), SHAPE))
    vae = start_autoencoder(autoencoder_config(gradient_checkpointing=True), SHAPE)
    forwards = []
    vae.decoder.mid_block.register_forward_pre_hook(lambda *x: forwards.append(x[0]))
    found = gradients(vae)
    assert len(forwards) == 2, "the backward pass computes it again"
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=1e-6, msg=name)


def test_gradient_checkpointing_works_with_the_discriminator(autoencoder_config, tmp_path):
    for name in ("plain", "checkpointed"):
        config = autoencoder_config(
            **WITH_DISCRIMINATOR,
            output_dir=str(tmp_path / name),
            gradient_checkpointing=name == "checkpointed",
            max_train_steps=3,
            checkpointing_steps=3,
        )
        train_autoencoder(config)
    plain, checkpointed = (
        load_file(tmp_path / name / "checkpoint-3" / "vae_optimizer.safetensors")
        for name in ("plain", "checkpointed")
    )
    for name, moment in checkpointed.items():
        torch.testing.assert_close(moment, plain[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_compiled_training_does_the_same_with_one_graph_a_module(
    autoencoder_config, tmp_path, compiled_eagerly
):
    for name in ("plain", "compiled"):
        config = autoencoder_config(
            **WITH_DISCRIMINATOR,
            output_dir=str(tmp_path / name),
            block_out_channels=[8, 8],
            compile=name == "compiled",
            max_train_steps=3,
            checkpointing_steps=3,
        )
        summary = train_autoencoder(config)
    assert compiled_eagerly == ["Encoder", "UNetMidBlock2D", *["UpDecoderBlock2D"] * 2]
    assert counters["stats"]["unique_graphs"] == len(compiled_eagerly)
    assert not counters["graph_break"]
    plain, compiled = (tmp_path / name / "checkpoint-3" for name in ("plain", "compiled"))
    files = sorted(path.relative_to(plain) for path in plain.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(compiled) for path in compiled.rglob("*.safetensors"))
    for file in files:
        weights, expected = load_file(compiled / file), load_file(plain / file)
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5, msg=name)
    assert AutoencoderKL.from_pretrained(summary.model_dir)


def test_a_training_starts_from_components_unless_told_otherwise(autoencoder_config, tmp_path):
    def after_one_step(**changes) -> float:
        config = autoencoder_config(max_train_steps=1, learning_rate=1e-9, **changes)
        return train_autoencoder(config).held_out.reconstruction.psnr_db

    linear = after_one_step(output_dir=str(tmp_path / "linear"))
    random = after_one_step(output_dir=str(tmp_path / "random"), initialization="random")
    config = autoencoder_config()
    splits = open_images(config)
    vae = start_autoencoder(config, SHAPE)
    start_linearly(vae, splits.train, config.kl_weight)
    images = splits.validation.evenly_spaced(config.max_validation_samples).read()
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    errors = (rebuilt - images).square().mean((1, 2, 3))
    assert linear == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), abs=0.02)
    assert linear > random + 3


@pytest.mark.parametrize("changes", [{}, {"pretrained_vae": "vae"}, {"dry_run": True}])
def test_only_a_new_autoencoder_is_fitted(autoencoder_config, tmp_path, monkeypatch, changes):
    if "pretrained_vae" in changes:
        make_autoencoder(sample_size=32).save_pretrained(tmp_path / "vae")
        changes = {"pretrained_vae": str(tmp_path / "vae")}
    fitted = []
    monkeypatch.setattr(autoencoder, "start_linearly", lambda *x: fitted.append(x))
    config = autoencoder_config(max_train_steps=1, checkpointing_steps=1, **changes)
    with suppress(DryRunEnd):
        train_autoencoder(config)
        train_autoencoder(replace(config, max_train_steps=2, resume_from_checkpoint="latest"))
    assert len(fitted) == (0 if changes else 1)
