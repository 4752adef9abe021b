"""A guide from the command line: loading, rejecting, counting and keeping samples."""

from pathlib import Path

import pytest
import torch
from tqdm.auto import tqdm

from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig, SamplingConfig
from hf_latent.evaluation.images.generated import write_samples
from hf_latent.evaluation.images.sampling import count_evaluations, load_pipeline, sample_images
from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance
from tests.conftest import NARROW_DENOISER, count_calls, make_guide
from tests.pipeline.test_prompts import make_words


@pytest.mark.parametrize("sampler", [None, "heun"])
@pytest.mark.parametrize(
    ("scale", "interval"), [(1.0, None), (2.0, None), (2.0, (0.4, 0.8)), (0.5, (0.4, 0.8))]
)
def test_counted_evaluations_are_made(unconditional_guided, sampler, scale, interval):
    pipeline = unconditional_guided
    if sampler is not None:
        pipeline.use_sampler(sampler)
    made = [count_calls(model) for model in (pipeline.unet, pipeline.guide_unet)]
    sample_images(pipeline, None, 1, 0, 1, scale, 4, interval)
    assert count_evaluations(pipeline, 4, Guidance(scale, interval)) == sum(map(sum, made))
    assert (made[1] == []) == (scale == 1)


@pytest.fixture
def saved(pipeline, tmp_path) -> Path:
    """A folder with a model and guides of several kinds."""
    vae, guide = pipeline.vae, make_guide(pipeline.vae)
    pipeline.save_pretrained(tmp_path / "model")
    guide.save_pretrained(tmp_path / "guide")
    make_guide(vae, None).save_pretrained(tmp_path / "no classes")
    vae.save_pretrained(tmp_path / "autoencoder")
    for objective in ("flow", "epsilon"):
        parts = (vae, guide, create_scheduler(objective))
        LatentDiffusionPipeline(*parts).save_pretrained(tmp_path / objective)
    return tmp_path


@pytest.mark.parametrize("name", ["guide", "flow"])
def test_load_pipeline_replaces_the_guide(saved, name):
    pipeline = load_pipeline(str(saved / "model"), "heun", str(saved / name))
    assert hash_weights(pipeline.guide_unet) == hash_weights(make_guide(pipeline.vae))
    assert pipeline.guide_unet.config._name_or_path == ""
    guidance = {"guidance_scale": 2.0, "num_inference_steps": 2}
    images = sample_images(pipeline, [0], 1, 0, 1, **guidance)
    pipeline.guide_unet = None
    assert not torch.equal(sample_images(pipeline, [0], 1, 0, 1, **guidance), images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no classes", "is not for this model: guide_unet has num_class_embeds None, and the"),
        ("epsilon", "is not for this model: it was trained for epsilon, and the model for flow"),
        ("autoencoder", "is a AutoencoderKL, not a UNet2DModel"),
        ("missing", "no denoiser found at"),
    ],
)
def test_a_guide_that_does_not_fit_is_one_line(saved, name, message):
    with pytest.raises(UserError) as error:
        load_pipeline(str(saved / "model"), guide=str(saved / name))
    assert message in str(error.value) and str(saved / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_guide_takes_the_prompts_of_the_model(pipeline, tmp_path):
    words, shape = make_words(), (1, 16, 16)
    words.save_pretrained(tmp_path / "model")
    narrow = NARROW_DENOISER | {"block_out_channels": (8, 16)}
    for name, width in (("guide", 16), ("wide", 24), ("none", None)):
        guide = create_denoiser("tiny", words.vae, shape, text_width=width, **narrow)
        guide.save_pretrained(tmp_path / name)
    guided = load_pipeline(str(tmp_path / "model"), guide=str(tmp_path / "guide"))
    made = [count_calls(model) for model in (guided.unet, guided.guide_unet)]
    sampling = (2.0, 2)
    images = sample_images(guided, None, 1, 0, 1, *sampling, prompts=["cat"])
    assert made == [[1, 1], [1, 1]]
    other = sample_images(guided, None, 1, 0, 1, *sampling, prompts=["heart"])
    assert not torch.allclose(images, other, atol=1e-4)
    for name, width in (("wide", 24), ("none", None)):
        with pytest.raises(UserError, match=f"guide_unet has prompt_width {width}, and the denoi"):
            load_pipeline(str(tmp_path / "model"), guide=str(tmp_path / name))
    pipeline.save_pretrained(tmp_path / "classes")
    with pytest.raises(UserError, match="is not for this model: guide_unet has num_class_embeds"):
        load_pipeline(str(tmp_path / "classes"), guide=str(tmp_path / "guide"))


def test_a_guide_with_other_noise_levels_is_rejected(pipeline, tmp_path):
    for name, zero_terminal_snr in (("model", False), ("same", False), ("other", True)):
        scheduler = create_scheduler("v_prediction", zero_terminal_snr)
        LatentDiffusionPipeline(pipeline.vae, pipeline.unet, scheduler).save_pretrained(
            tmp_path / name
        )
    model, same, other = (str(tmp_path / name) for name in ("model", "same", "other"))
    assert load_pipeline(model, guide=same).guide_unet is not None
    assert load_pipeline(other, guide=other).guide_unet is not None
    for pair in ((model, other), (other, model)):
        with pytest.raises(UserError, match="it was trained on other noise levels: use a guide"):
            load_pipeline(pair[0], guide=pair[1])


def test_guidance_of_a_model_without_classes_needs_a_guide(unconditional_guided):
    for changes in ({"guidance_scale": 3.0}, {"guidance_interval": "0.2,0.8"}):
        SamplingConfig(**changes).choose_sampling(unconditional_guided)
    unconditional_guided.guide_unet = None
    for changes in ({"guidance_scale": 3.0}, {"guidance_interval": "0.2,0.8"}):
        with pytest.raises(UserError, match=f"^--{next(iter(changes))} needs .* or a guide, "):
            SamplingConfig(**changes).choose_sampling(unconditional_guided)


def test_a_guide_of_a_distilled_model_is_rejected(distilled, tmp_path):
    distilled.save_pretrained(tmp_path / "model")
    make_guide(distilled.vae).save_pretrained(tmp_path / "guide")
    with pytest.raises(UserError, match=r"^--guide .* is not for this model: guide_unet does not"):
        load_pipeline(str(tmp_path / "model"), guide=str(tmp_path / "guide"))


def test_samples_of_another_guide_are_rejected(guided, tmp_path):
    config = EvaluateConfig(model="m", output_dir=str(tmp_path), num_inference_steps=1)
    labels = torch.tensor([0, 2])
    with tqdm(disable=True) as bar:
        write_samples(guided, labels, 2, config, {}, bar)
        guided.guide_unet.conv_in.bias.data += 1
        with pytest.raises(UserError, match="was made with another guide_unet"):
            write_samples(guided, labels, 2, config, {}, bar)
