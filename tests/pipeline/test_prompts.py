import pytest
import torch
from accelerate import cpu_offload
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.prompts import encode_prompts
from tests.conftest import NARROW_DENOISER, make_autoencoder
from tests.models.test_text_encoder import make_bert, make_tokenizer


def make_words(**changes) -> LatentDiffusionPipeline:
    torch.manual_seed(0)
    vae, encoder, tokenizer = make_autoencoder(), make_bert().eval(), make_tokenizer()
    tokenizer.model_max_length, encoder.config.use_attention_mask = 6, True
    unet = create_denoiser("tiny", vae, (1, 16, 16), text_width=16, **NARROW_DENOISER).eval()
    scheduler = create_scheduler("flow")
    words = {"text_encoder": encoder, "tokenizer": tokenizer} | changes
    pipeline = LatentDiffusionPipeline(vae, unet, scheduler, num_inference_steps=3, **words)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, *prompts, **arguments) -> torch.Tensor:
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return pipeline(*prompts, latents=noise, output_type="latent", **arguments).images


@pytest.fixture
def words():
    return make_words()


def test_images_are_those_of_stable_diffusion(words):
    config = {"use_flow_sigmas": True, "flow_shift": 1.0, "prediction_type": "flow_prediction"}
    words.scheduler = DPMSolverMultistepScheduler(**config)
    parts = {x: getattr(words, x) for x in ("vae", "unet", "text_encoder", "tokenizer")}
    stock = StableDiffusionPipeline(
        **parts,
        scheduler=DPMSolverMultistepScheduler(**config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    prompts, negative = ["a red heart", "a blue cat"], ["a cat", ""]
    arguments = {"guidance_scale": 3.0, "num_inference_steps": 4, "negative_prompt": negative}
    expected = draw(stock, prompts, height=16, width=16, **arguments)
    found = draw(words, prompt=prompts, **arguments)
    # Stock pipelines cut timesteps to whole numbers.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert expected.std() > 0.5


def test_prompts_and_their_embeddings_draw_the_same(words):
    prompts = ["a red heart", "a blue cat"]
    expected = draw(words, prompt=prompts)
    embeds = encode_prompts(words.text_encoder, words.tokenizer, prompts)
    without = LatentDiffusionPipeline(**words.components | {"text_encoder": None})
    without.set_progress_bar_config(disable=True)
    null = encode_prompts(words.text_encoder, words.tokenizer, [""])
    found = draw(without, prompt_embeds=embeds, negative_prompt_embeds=null)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(draw(words, prompt="a cat"), expected)
    with pytest.raises(ValueError, match="this pipeline has no text_encoder: load it again"):
        draw(without, prompt=prompts)


def test_it_is_saved_and_loaded(words, tmp_path, capfd):
    words.save_pretrained(tmp_path)
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert "Expected types" not in capfd.readouterr().err
    loaded.set_progress_bar_config(disable=True)
    assert hash_weights(loaded.text_encoder) == hash_weights(words.text_encoder)
    assert loaded.tokenizer.model_max_length == 6
    found, expected = (draw(x, prompt=["a red heart", "cat"]) for x in (loaded, words))
    torch.testing.assert_close(found, expected)


def test_prompts_of_a_model_without_words_are_an_error(pipeline):
    with pytest.raises(ValueError, match="this model was trained without prompts: use class_l"):
        pipeline(prompt="a red heart")


def test_the_first_argument_is_the_prompt(words):
    expected = draw(words, prompt=["a red heart", "a cat"])
    assert torch.equal(draw(words, ["a red heart", "a cat"]), expected)
    with pytest.raises(ValueError, match="the first argument is the prompt: pass one"):
        draw(words, "a cat", prompt="a red heart")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "no prompts in the list"),
        ({"prompt": 3}, "a prompt is a text, or a list of texts"),
        ({"prompt": ["a", None]}, "a prompt is a text, or a list of texts"),
        ({"prompt_embeds": torch.zeros(6, 16)}, r"shape \(P, T, 16\), and these have \(6, 16\)"),
        ({"prompt_embeds": torch.zeros(2, 6, 8)}, r"and these have \(2, 6, 8\)"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(0, 6, 16)}, "and these have"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 6, 16)}, "not both"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 4, 16)}, "both must be equal"),
    ],
)
def test_what_is_no_prompt_is_an_error(words, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(words, **arguments)


def test_without_guidance_no_empty_prompt_is_needed(words):
    embeds = encode_prompts(words.text_encoder, words.tokenizer, ["a red heart", "a cat"])
    expected = draw(words, prompt=["a red heart", "a cat"], guidance_scale=1)
    words.text_encoder = None
    assert torch.equal(draw(words, prompt_embeds=embeds, guidance_scale=1), expected)
    with pytest.raises(ValueError, match="this pipeline has no text_encoder"):
        draw(words, prompt_embeds=embeds, guidance_scale=2)


def test_without_a_prompt_nothing_is_guided(words):
    expected = draw(words, prompt="", guidance_scale=1)
    assert torch.equal(draw(words), expected)
    with pytest.raises(ValueError, match="a prompt"):
        draw(words, guidance_scale=2)
    led_away = draw(words, negative_prompt="a cat", guidance_scale=2)
    assert torch.equal(led_away, draw(words, prompt="", negative_prompt="a cat", guidance_scale=2))
    assert not torch.allclose(led_away, expected)


def test_an_encoder_that_says_nothing_of_padding_attends_to_it(words):
    expected = draw(words, prompt="a cat")
    del words.text_encoder.config.use_attention_mask
    assert not torch.allclose(draw(words, prompt="a cat"), expected)


def test_a_text_encoder_may_be_offloaded(words):
    expected = draw(words, prompt="a cat", guidance_scale=1)
    for name in ("vae", "unet", "text_encoder"):  # as enable_sequential_cpu_offload does
        cpu_offload(getattr(words, name), torch.device("cpu"))
    assert words.text_encoder.device.type == "meta"
    assert torch.equal(draw(words, prompt="a cat", guidance_scale=1), expected)
