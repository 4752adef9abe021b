import pytest
import torch
from diffusers import AutoencoderKL

from hf_latent.models.fold import (
    FOLDED_MEAN,
    MINIMUM_DEVIATION,
    LatentStatistics,
    fold_latent_scale,
    measure_latents,
    prepare_for_training,
    sum_latents,
    unfold_latent_scale,
)
from hf_latent.models.presets import create_autoencoder
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images
from tests.conftest import NARROW_AUTOENCODER, make_autoencoder


def posteriors(vae: AutoencoderKL, images: torch.Tensor) -> list:
    with torch.no_grad():
        return [vae.encode(batch).latent_dist for batch in images.split(3)]


def statistics_of(vae: AutoencoderKL, images: torch.Tensor) -> LatentStatistics:
    return measure_latents(sum(map(sum_latents, posteriors(vae, images))))


@pytest.fixture
def many_images() -> torch.Tensor:
    return torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_statistics_are_those_of_posterior_samples(vae, many_images):
    statistics = statistics_of(vae, many_images)
    assert statistics.mean.dtype == torch.float64
    generator = torch.Generator().manual_seed(0)
    encoded = list(posteriors(vae, many_images))
    samples = torch.cat([p.sample(generator) for _ in range(400) for p in encoded]).double()
    torch.testing.assert_close(statistics.mean, samples.mean((0, 2, 3)), rtol=0, atol=0.03)
    torch.testing.assert_close(statistics.std, samples.std((0, 2, 3)), rtol=0.01, atol=0)


def test_sums_of_batches_can_be_added(vae, many_images):
    whole = statistics_of(vae, many_images)
    shares = sum(sum(map(sum_latents, posteriors(vae, many_images[rank::2]))) for rank in range(2))
    torch.testing.assert_close(measure_latents(shares).std, whole.std, rtol=1e-6, atol=0)
    torch.testing.assert_close(measure_latents(shares).mean, whole.mean, rtol=0, atol=1e-6)


def test_folded_latents_have_zero_mean_and_unit_variance(vae, many_images):
    folded = fold_latent_scale(vae, statistics_of(vae, many_images))
    again = statistics_of(folded, many_images)
    torch.testing.assert_close(again.mean, torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.std, torch.ones(4).double(), rtol=0, atol=1e-6)
    assert folded.config.scaling_factor == 1.0


def test_the_fold_changes_no_reconstruction_and_no_input(vae, many_images):
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    folded = fold_latent_scale(vae, statistics_of(vae, many_images))
    with torch.no_grad():
        before = vae.decode(vae.encode(many_images).latent_dist.mean).sample
        after = folded.decode(folded.encode(many_images).latent_dist.mean).sample
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_fold_and_unfold_are_an_inverse_pair_through_a_save(vae, many_images, tmp_path, caplog):
    fold_latent_scale(vae, statistics_of(vae, many_images)).save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path, use_safetensors=True)
    assert "not expected" not in caplog.text
    unfolded = unfold_latent_scale(loaded)
    for name, tensor in vae.state_dict().items():
        torch.testing.assert_close(unfolded.state_dict()[name], tensor, rtol=0, atol=1e-6)
    fold_latent_scale(unfolded, statistics_of(unfolded, many_images))


def test_a_collapsed_channel_survives_the_fold(many_images):
    vae = make_autoencoder()
    with torch.no_grad():
        vae.quant_conv.weight[0], vae.quant_conv.bias[0] = 0, 0.5
        vae.quant_conv.weight[4], vae.quant_conv.bias[4] = 0, -25
    statistics = statistics_of(vae, many_images)
    assert statistics.std[0] == MINIMUM_DEVIATION
    folded = fold_latent_scale(vae, statistics)
    with torch.no_grad():
        before = vae.decode(vae.encode(many_images).latent_dist.mean).sample
        after = folded.decode(folded.encode(many_images).latent_dist.mean).sample
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
    assert all(weight.isfinite().all() for weight in folded.state_dict().values())


def test_folding_twice_and_unfolding_without_a_fold_are_refused(vae, many_images):
    statistics = statistics_of(vae, many_images)
    with pytest.raises(ValueError, match="already folded"):
        fold_latent_scale(fold_latent_scale(vae, statistics), statistics)
    with pytest.raises(ValueError, match="not folded"):
        unfold_latent_scale(vae)
    with pytest.raises(ValueError, match="no quant_conv"):
        fold_latent_scale(AutoencoderKL(use_quant_conv=False), statistics)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(images).latent_dist.mean).sample


def assert_neutral(vae: AutoencoderKL) -> None:
    assert vae.config.scaling_factor == 1.0
    assert not [key for key in vae.config if key.startswith("_folded")]
    for name in ("shift_factor", "latents_mean", "latents_std"):
        assert vae.config[name] is None


def test_a_folded_autoencoder_is_unfolded_to_be_trained_on(vae, many_images, tmp_path):
    fold_latent_scale(vae, statistics_of(vae, many_images)).save_pretrained(tmp_path)
    folded = AutoencoderKL.from_pretrained(tmp_path)
    prepared = prepare_for_training(folded)
    assert_neutral(prepared)
    for name, tensor in vae.state_dict().items():
        torch.testing.assert_close(prepared.state_dict()[name], tensor, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        reconstruct(prepared, many_images), reconstruct(folded, many_images), rtol=0, atol=2e-5
    )
    assert FOLDED_MEAN in folded.config


def test_a_foreign_scale_is_reset_and_folding_gives_unit_variance(vae, many_images):
    foreign = {
        "scaling_factor": 0.18215,
        "shift_factor": 0.1,
        "latents_mean": [0.1, -0.2, 0.3, -0.4],
        "latents_std": [1.5, 0.5, 2.0, 3.0],
    }
    vae.register_to_config(**foreign)
    prepared = prepare_for_training(vae)
    assert_neutral(prepared)
    assert {name: vae.config[name] for name in foreign} == foreign, "the given one is left alone"
    assert torch.equal(reconstruct(prepared, many_images), reconstruct(vae, many_images))
    folded = fold_latent_scale(prepared, statistics_of(prepared, many_images))
    latents = encode_images(folded, many_images, sample_posterior=False)
    again = statistics_of(folded, many_images)
    torch.testing.assert_close(again.mean, torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.std, torch.ones(4).double(), rtol=0, atol=1e-6)
    decoded = decode_latents(folded, latents)
    torch.testing.assert_close(decoded, reconstruct(vae, many_images), rtol=0, atol=5e-5)


@pytest.mark.parametrize("lacking", ["use_quant_conv", "use_post_quant_conv", "both"])
def test_a_missing_quant_conv_becomes_the_identity(many_images, lacking):
    names = ("use_quant_conv", "use_post_quant_conv")
    parts = {name: lacking not in (name, "both") for name in names}
    torch.manual_seed(0)
    vae = create_autoencoder("tiny", 1, 16, **NARROW_AUTOENCODER, **parts).eval()
    assert vae.quant_conv is None or vae.post_quant_conv is None
    prepared = prepare_for_training(vae).eval()
    assert prepared.config.use_quant_conv
    assert prepared.config.use_post_quant_conv
    with torch.no_grad():
        before, after = (x.encode(many_images).latent_dist for x in (vae, prepared))
    torch.testing.assert_close(after.mean, before.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.logvar, before.logvar, rtol=0, atol=1e-6)
    expected = reconstruct(vae, many_images)
    torch.testing.assert_close(reconstruct(prepared, many_images), expected, rtol=0, atol=1e-6)
    folded = fold_latent_scale(prepared, statistics_of(prepared, many_images))
    again = statistics_of(folded, many_images)
    torch.testing.assert_close(again.std, torch.ones(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(reconstruct(folded, many_images), expected, rtol=0, atol=2e-5)


def test_a_prepared_autoencoder_can_be_saved_and_loaded(vae, many_images, tmp_path, caplog):
    folded = fold_latent_scale(vae, statistics_of(vae, many_images))
    prepare_for_training(folded).save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    assert "not expected" not in caplog.text
    assert_neutral(loaded)
    fold_latent_scale(loaded, statistics_of(loaded, many_images))
