import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latent.data.latents.cache import LatentBatch
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline.add_noise import add_noise
from hf_latent.pipeline.encode import LatentPosteriors
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.losses import denoising_loss
from hf_latent.training.run.batches import seeded_generator
from hf_latent.training.validation.denoiser import (
    evenly_spaced_timesteps,
    measure_held_out_loss,
    save_samples,
)
from tests.conftest import count_calls, make_autoencoder


class ZeroDenoiser(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, sample, timestep, class_labels=None):
        return type("Output", (), {"sample": torch.zeros_like(sample)})


def part_name(start: int, end: int) -> str:
    return f"validation_loss_timesteps_{start}_to_{end}"


def test_samples_are_drawn_in_the_models_own_steps(distilled, unconditional, tmp_path):
    unconditional.register_to_config(num_inference_steps=3)
    for pipeline, made in ((distilled, 4), (unconditional, 3)):
        calls = count_calls(pipeline.unet)
        save_samples(pipeline, tmp_path / "samples.png", 80, 0)
        assert len(calls) == made


def test_samples_are_drawn_and_decoded_in_batches(pipeline, tmp_path):
    """A decoder of large images would need more memory than the training."""
    sizes, drawn = [], []
    decode = pipeline.vae.decode

    def counted(latents, **options):
        sizes.append(len(latents))
        return decode(latents, **options)

    pipeline.vae.decode = counted
    for batch_size in (4, 6):
        save_samples(pipeline, tmp_path / "samples.png", batch_size, 0)
        drawn.append(np.asarray(Image.open(tmp_path / "samples.png")).astype(int))
    assert sizes == [4, 2, 6], "tests draw 2 images of each of the three classes"
    assert abs(drawn[0] - drawn[1]).max() <= 1, "each image has its own noise"
    assert drawn[0].std() > 0


def test_noise_levels_cover_the_range():
    timesteps = evenly_spaced_timesteps(create_scheduler("flow"), 4)
    assert timesteps.tolist() == [125.0, 375.0, 625.0, 875.0]
    timesteps = evenly_spaced_timesteps(create_scheduler("epsilon"), 4)
    assert timesteps.tolist() == [125, 375, 625, 875]
    assert timesteps.dtype == torch.int64


def test_held_out_loss_is_correct_and_reproducible():
    mean = torch.full((300, 4, 4, 4), 3.0)
    held_out = LatentBatch(LatentPosteriors(mean, torch.zeros_like(mean)), {})
    scheduler = create_scheduler("flow")
    loss, figures = measure_held_out_loss(ZeroDenoiser(), scheduler, held_out, 64, 0)
    # E (noise - 3)^2 = 1 + 9
    assert abs(loss - 10) < 0.3
    assert (loss, figures) == measure_held_out_loss(ZeroDenoiser(), scheduler, held_out, 64, 0)


@pytest.mark.parametrize("objective", ["flow", "v_prediction"])
def test_held_out_loss_of_each_part_of_the_noise_levels(objective):
    generator = torch.Generator().manual_seed(4)
    posteriors = LatentPosteriors(*torch.rand(2, 53, 4, 4, 4, generator=generator))
    scheduler = create_scheduler(objective)
    loss, figures = measure_held_out_loss(
        ZeroDenoiser(), scheduler, LatentBatch(posteriors, {}), 8, 0
    )

    generator = seeded_generator(0, "validation")
    posterior_noise, noise = torch.randn(2, 53, 4, 4, 4, generator=generator)
    timesteps = evenly_spaced_timesteps(scheduler, 53)
    timesteps = timesteps[torch.randperm(53, generator=generator)]
    noised = add_noise(scheduler, posteriors.sample(posterior_noise), noise, timesteps)
    errors = noised.target.square().mean((1, 2, 3))
    parts = [(0, 200), (200, 400), (400, 600), (600, 800), (800, 1000)]
    assert list(figures) == [part_name(*part) for part in parts]
    for start, end in parts:
        inside = (timesteps >= start) & (timesteps < end)
        assert 10 <= inside.sum() <= 11
        assert figures[part_name(start, end)] == pytest.approx(errors[inside].mean().item())

    # The mean is summed batch by batch, so it is equal to the bit.
    total = 0.0
    for rows in torch.arange(53).split(8):
        target, weights = noised.target[rows], noised.weights[rows]
        total += denoising_loss(torch.zeros_like(target), target, weights).item() * len(rows)
    assert loss == total / 53


def test_parts_without_images_are_left_out():
    posteriors = LatentPosteriors(*torch.rand(2, 2, 4, 4, 4))
    scheduler = create_scheduler("flow")
    held_out = LatentBatch(posteriors, {})
    _, figures = measure_held_out_loss(ZeroDenoiser(), scheduler, held_out, 8, 0)
    assert list(figures) == [part_name(200, 400), part_name(600, 800)]


def test_the_log_has_the_loss_of_each_part(denoiser_config, tmp_path):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    summary = train_denoiser(denoiser_config())
    lines = [json.loads(x) for x in (tmp_path / "denoiser/logs/losses.jsonl").open()]
    lines = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["validation_loss"] == summary.validation_losses[line["step"]]
        parts = [line[part_name(n, n + 200)] for n in range(0, 1000, 200)]
        # 12 images: 2, 3, 2, 3 and 2 of them
        mean = sum(x * count for x, count in zip(parts, (2, 3, 2, 3, 2), strict=True)) / 12
        assert mean == pytest.approx(line["validation_loss"])
