"""The tables of a sampler compute what the pipeline computes with its scheduler."""

import pytest
import torch

from hf_latent.hub.page.steps import clean_weights, tabulate_noising, tabulate_steps
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import compatible_samplers
from tests.conftest import NUM_CLASSES, make_autoencoder, make_denoiser

OBJECTIVES = ("flow", "epsilon", "v_prediction", "sample")
CASES = [(x, y) for x in OBJECTIVES for y in compatible_samplers(create_scheduler(x))]
LABEL, SCALE, STEPS = 1, 2.0, 5


def make_model(objective: str, **guidance) -> LatentDiffusionPipeline:
    vae = make_autoencoder()
    scheduler = create_scheduler(objective)
    model = LatentDiffusionPipeline(vae, make_denoiser(vae), scheduler, guidance=guidance)
    model.set_progress_bar_config(disable=True)
    return model


def weighted(weights: list[float], terms: list[torch.Tensor]) -> torch.Tensor:
    return sum(w * x for w, x in zip(weights, terms, strict=True))


@torch.no_grad()
def denoise(model, table, noise: torch.Tensor, kept=None, mask=None) -> torch.Tensor:
    """What denoise.js does, in torch."""
    terms, latents, previous = [noise], noise, noise
    for i, t in enumerate(table["timesteps"]):
        inputs = weighted(table["inputs"][i], terms)
        if kept is not None and i:
            inputs = torch.where(mask, inputs, previous)
        outputs = [
            model.unet(inputs, torch.tensor(t), class_labels=torch.full((2,), label)).sample
            for label in (LABEL, NUM_CLASSES)
        ]
        scale = SCALE if table["guided"][i] else 1
        terms.append(outputs[1] + scale * (outputs[0] - outputs[1]))
        latents = weighted(table["latents"][i], terms)
        if kept is not None:
            previous = weighted(table["kept"][i], [kept, noise])
            latents = torch.where(mask, latents, previous)
    return latents


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("objective", "sampler"), CASES)
def test_tables_draw_the_pipelines_latents(objective, sampler, noise):
    model = make_model(objective, guidance_scale=SCALE, guidance_interval=(0.0, 0.7))
    table = tabulate_steps(model, sampler, STEPS)
    model.use_sampler(sampler)
    expected = model.denoise_latents(noise, STEPS, class_labels=[LABEL] * 2)
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        denoise(model, table, noise), expected, rtol=0, atol=1e-5 * max(scale, 1)
    )
    assert {True, False} == set(table["guided"])  # the interval counts


def test_the_table_of_a_distilled_model_draws_its_latents(distilled, noise):
    table = tabulate_steps(distilled, None, 4)
    expected = distilled.denoise_latents(noise, class_labels=[LABEL] * 2)
    torch.testing.assert_close(denoise(distilled, table, noise), expected, rtol=0, atol=1e-5)
    assert table["guided"] == [False] * 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tables_keep_a_half_as_the_pipeline_does(objective, noise):
    model = make_model(objective, guidance_scale=SCALE)
    kept = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = True
    table = tabulate_steps(model, "unipc", STEPS)
    model.use_sampler("unipc")
    expected = model.denoise_latents(
        noise, STEPS, class_labels=[LABEL] * 2, image_latents=kept, mask=mask
    )
    found = denoise(model, table, noise, kept, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[..., :2], kept[..., :2], rtol=0, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_prediction_of_a_perfect_denoiser_is_the_clean_latents(objective, noise):
    model = make_model(objective)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    for t in (1, 500, 999):
        noised = model.add_noise(latents, noise.double(), torch.tensor([t, t]))
        weights = clean_weights(model, torch.tensor(t))
        found = weighted(weights, [noised.noisy_latents.double(), noised.target.double()])
        torch.testing.assert_close(found, latents, rtol=0, atol=2e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_slider_mixes_noise_as_training_does(objective, noise):
    model = make_model(objective)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    table = tabulate_noising(model)
    levels = [level for level, *_ in table]
    assert levels == sorted(levels)
    last = 1000 if objective == "flow" else 999
    for i, t in ((0, 0), (50, last / 2), (100, last)):
        timesteps = torch.tensor([t, t]).float()
        if objective != "flow":
            timesteps = timesteps.round().long()
        expected = model.add_noise(latents, noise, timesteps).noisy_latents
        torch.testing.assert_close(
            weighted(table[i][1:], [latents, noise]), expected, rtol=0, atol=1e-5
        )
