import pytest
import torch
from diffusers import AutoencoderTiny

from hf_latent.evaluation.inspection.frequencies import BandPower
from hf_latent.evaluation.inspection.round_trip import RoundTrip, on_white
from hf_latent.evaluation.inspection.structure import NOISE_STD, Agreement, sobel_edges
from hf_latent.evaluation.measures.reconstruction import composite, image_psnr, reconstruct
from tests.conftest import make_autoencoder


def random_images(count: int, channels: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, channels, size, size, generator=generator) * 2 - 1


@pytest.fixture
def tiny() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        in_channels=3,
        out_channels=3,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


def test_figures_are_those_of_images_and_their_reconstructions(vae):
    images = random_images(10, 1)
    trip = RoundTrip(vae, (1, 16, 16), seed=0)
    decoded = torch.cat([trip(batch) for batch in images.split(4)])
    torch.testing.assert_close(decoded, reconstruct(vae, images), rtol=0, atol=1e-5)
    original, reconstruction = images / 2 + 0.5, decoded.clamp(-1, 1) / 2 + 0.5
    figures = trip.figures()
    psnr = image_psnr(reconstruction, original)
    assert figures["psnr_db_worst"] == pytest.approx(psnr.min().item(), abs=1e-4)
    assert figures["psnr_db_median"] == pytest.approx(psnr.median().item(), abs=1e-4)
    signal, error = BandPower(16, 16), BandPower(16, 16)
    signal.update(original)
    error.update(reconstruction - original)
    expected = 1 - error.compute() / signal.compute()
    assert figures["band_kept"] == pytest.approx(expected.tolist(), abs=1e-5)
    edges = Agreement()
    edges.update(sobel_edges(original), sobel_edges(reconstruction))
    assert figures["edge_agreement"] == pytest.approx(edges.compute(), abs=1e-5)
    assert "ms_ssim" not in figures


@pytest.mark.parametrize(("gain", "survival"), [(1.0, 1.0), (0.25, 0.25), (0.0, 0.0)])
def test_noise_survival_is_the_share_that_comes_back(vae, monkeypatch, gain, survival):
    images = random_images(8, 1)
    trip = RoundTrip(vae, (1, 16, 16), seed=0)
    decoded = trip(images)  # the reconstructions of clean images
    seen = []

    def passes_a_part(_, noisy):
        seen.append(noisy - images)
        return decoded + gain * (noisy - images)

    monkeypatch.setattr("hf_latent.evaluation.inspection.round_trip.reconstruct", passes_a_part)
    trip = RoundTrip(vae, (1, 16, 16), seed=0)
    trip(images)
    assert trip.figures()["noise_survival"] == pytest.approx(survival, abs=1e-4)
    # In [-1, 1] the noise is twice as large as in [0, 1].
    assert seen[0].std().item() == pytest.approx(2 * NOISE_STD, rel=0.1)


def test_an_autoencoder_without_a_posterior_has_no_rate(tiny):
    trip = RoundTrip(tiny, (3, 16, 16), seed=0)
    trip(random_images(6, 3))
    assert trip.rate is None
    figures = trip.figures()
    assert len(figures["latent_std"]) == 4
    assert figures["latent_informative_share"] == pytest.approx([1.0] * 4)


def test_rgba_is_seen_on_white_and_its_noise_is_not_in_alpha():
    images = random_images(4, 4)
    torch.testing.assert_close(on_white(images), composite(images / 2 + 0.5, 1.0))
    hidden = images.clone()
    hidden[:, 3] = -1
    vae = make_autoencoder(4)
    trip = RoundTrip(vae, (4, 16, 16), seed=0)
    trip(images)
    assert trip.figures()["band_signal_power"][0] > 0
    trip = RoundTrip(vae, (4, 16, 16), seed=0)
    noise = []
    trip._noise.update = lambda added, answer: noise.append(added)
    trip(hidden)
    assert (noise[0] == 0).all()  # transparent pixels show no noise


@pytest.mark.parametrize(("size", "measured"), [(168, False), (176, True)])
def test_large_images_have_ms_ssim(vae, size, measured):
    trip = RoundTrip(vae, (1, size, size), seed=0)
    trip(random_images(2, 1, size))
    figures = trip.figures()
    assert ("ms_ssim" in figures) == measured
    assert 0 <= figures.get("ms_ssim", 0) < 1


@pytest.mark.parametrize("channels", [1, 4])
def test_latents_of_one_value_and_a_batch_of_one(channels):
    vae = make_autoencoder(channels)
    trip = RoundTrip(vae, (channels, 4, 4), seed=0)
    trip(random_images(1, channels, 4))
    assert len(trip.figures()["latent_std"]) == 4


def test_the_scale_of_dead_channels_does_not_count(vae):
    with torch.no_grad():
        vae.quant_conv.weight[0] = 0
        vae.quant_conv.bias[0] = 0
        vae.quant_conv.weight[4] = 0
        vae.quant_conv.bias[4] = -20.0  # channel 0: always 0
    trip = RoundTrip(vae, (1, 16, 16), seed=0)
    trip(random_images(8, 1))
    figures = trip.figures()
    assert figures["dead_channels"][0] == 0
    assert figures["live_latent_std_smallest"] > figures["latent_std"][0]
    assert figures["dead_channel_share"] == len(figures["dead_channels"]) / 4
