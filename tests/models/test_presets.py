import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UniPCMultistepScheduler

from hf_latent.errors import UserError
from hf_latent.models.presets import (
    AUTOENCODERS,
    DENOISERS,
    create_autoencoder,
    create_denoiser,
    create_scheduler,
    measure_compression,
)
from hf_latent.pipeline.encode import encode_images
from tests.conftest import NARROW_AUTOENCODER, NARROW_DENOISER


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def test_f8_of_a_512_image_has_48_times_fewer_values():
    with torch.device("meta"):
        vae = create_autoencoder("ldm-f8", 3, 512)
    compression = measure_compression(vae, (3, 512, 512))
    assert (compression.image_values, compression.latent_values) == (786_432, 16_384)
    assert compression.ratio == 48
    line = str(compression)
    assert (
        line == "786,432 values in (3, 512, 512), 16,384 latent values (4, 64, 64), 48 times fewer"
    )


@pytest.mark.parametrize(
    ("preset", "vae_millions", "denoiser_millions", "f", "c"),
    # The sizes of Rombach et al. 2022: kl-f8 and LDM-4 (274 M), LDM-8 (295 M).
    [("ldm-f4", 55.3, 274.1, 4, 3), ("ldm-f8", 83.65, 295.0, 8, 4)],
)
def test_published_presets_have_the_published_sizes(preset, vae_millions, denoiser_millions, f, c):
    with torch.device("meta"):
        vae = create_autoencoder(preset, 3, 256)
        unet = create_denoiser(preset, vae, (3, 256, 256))
    assert millions(vae) == pytest.approx(vae_millions, abs=0.05)
    assert millions(unet) == pytest.approx(denoiser_millions, abs=0.05)
    assert measure_compression(vae, (3, 256, 256)).latent_shape == (c, 256 // f, 256 // f)


@pytest.mark.parametrize("preset", AUTOENCODERS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_preset_fits_a_denoiser_to_its_autoencoder(preset, channels):
    with torch.device("meta"):
        vae = create_autoencoder(preset, channels, (128, 256))
        unet = create_denoiser(preset, vae, (channels, 128, 256), num_classes=7)
    shape = measure_compression(vae, (channels, 128, 256)).latent_shape
    assert (unet.config.in_channels, *unet.config.sample_size) == shape
    assert unet.config.out_channels == unet.config.in_channels
    assert unet.config.num_class_embeds == 8
    latents = torch.empty(1, *shape, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    assert unet(latents, torch.zeros(1, device="meta"), labels).sample.shape == latents.shape
    assert vae.config.scaling_factor == 1.0


def test_denoiser_and_autoencoder_presets_have_the_same_names():
    assert list(AUTOENCODERS) == list(DENOISERS)


@pytest.mark.parametrize(
    ("preset", "colour", "grey"),
    [("tiny", 8, 4), ("small", 8, 4), ("base", 4, 4), ("ldm-f4", 3, 3), ("ldm-f8", 4, 4)],
)
def test_latent_channels(preset, colour, grey):
    with torch.device("meta"):
        for image_channels, c in ((1, grey), (3, colour), (4, colour), (6, colour)):
            vae = create_autoencoder(preset, image_channels, 64)
            assert vae.config.latent_channels == c
        assert create_autoencoder(preset, 1, 64, latent_channels=16).config.latent_channels == 16


def make_tiny_autoencoder(size):
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    return AutoencoderTiny(1, 1, **blocks, **widths).eval()


@pytest.mark.parametrize("size", [(16, 16), (48, 80)])
@pytest.mark.parametrize(
    "make",
    [lambda size: create_autoencoder("tiny", 1, size, **NARROW_AUTOENCODER), make_tiny_autoencoder],
    ids=["AutoencoderKL", "AutoencoderTiny"],
)
def test_derived_shape_is_that_of_an_encoded_image(make, size):
    vae = make(size)
    with torch.no_grad():
        latents = encode_images(vae, torch.zeros(1, 1, *size))
    assert measure_compression(vae, (1, *size)).latent_shape == latents.shape[1:]


def test_a_size_that_does_not_fit_is_refused_with_both_multiples():
    vae = create_autoencoder("tiny", 1, 20, **NARROW_AUTOENCODER)
    with pytest.raises(UserError, match="multiples of 4 to be encoded and of 8 to be denoised"):
        create_denoiser("tiny", vae, (1, 20, 20), **NARROW_DENOISER)
    with pytest.raises(UserError, match="multiples of its downsampling factor 4"):
        create_denoiser("tiny", vae, (1, 18, 18), **NARROW_DENOISER)


def test_each_scheduler_has_its_objective():
    assert isinstance(create_scheduler("flow"), UniPCMultistepScheduler)
    for objective in ("epsilon", "v_prediction", "sample"):
        scheduler = create_scheduler(objective)
        assert isinstance(scheduler, DDIMScheduler)
        assert scheduler.config.prediction_type == objective
        assert not scheduler.config.clip_sample


@pytest.mark.parametrize("objective", ["v_prediction", "sample"])
def test_zero_terminal_snr_ends_the_schedule_with_noise_only(objective):
    plain, scheduler = (create_scheduler(objective, zero) for zero in (False, True))
    assert plain.alphas_cumprod[-1] > 0
    assert scheduler.alphas_cumprod[-1] == 0
    assert scheduler.config.rescale_betas_zero_snr
    # Lin et al. 2024, algorithm 1
    roots = plain.alphas_cumprod.double().sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), roots.square(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", ["flow", "epsilon"])
def test_zero_terminal_snr_is_refused_for_flow_and_epsilon(objective):
    with pytest.raises(ValueError, match=f"zero_terminal_snr is not for {objective}") as raised:
        create_scheduler(objective, zero_terminal_snr=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize(
    ("objective", "zero"),
    [
        ("epsilon", False),
        ("v_prediction", False),
        ("v_prediction", True),
        ("sample", False),
        ("sample", True),
    ],
)
def test_sampling_with_true_predictions_ends_with_the_clean_latents(objective, zero, steps):
    scheduler = create_scheduler(objective, zero)
    latents, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps)
    first = scheduler.timesteps[:1].expand(3)
    assert first[0] == 999
    sample = scheduler.add_noise(latents, noise, first)
    for timestep in scheduler.timesteps:
        answer = {
            "epsilon": noise,
            "sample": latents,
            "v_prediction": scheduler.get_velocity(latents, noise, timestep.expand(3)),
        }[objective]
        sample = scheduler.step(answer, timestep, sample).prev_sample
    # With little signal at the start, epsilon divides float32's rounding by its amplitude.
    torch.testing.assert_close(sample, latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("widths", "groups"),
    [((8, 16, 32), 1), ((16, 32), 2), ((28, 56), 2), ((64, 128), 8), ((512, 512), 32), ((4, 4), 1)],
)
def test_a_group_of_a_norm_has_several_channels(widths, groups):
    vae = create_autoencoder("tiny", 3, 32, block_out_channels=widths)
    assert vae.config.norm_num_groups == groups
    assert vae.decoder.conv_norm_out.num_groups == groups
