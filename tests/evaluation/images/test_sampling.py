import json

import pytest
import torch

from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import (
    choose_sampling,
    count_evaluations,
    load_pipeline,
    sample_images,
)
from hf_latent.models.presets import create_denoiser
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.denoise import Guidance
from tests.conftest import NARROW_DENOISER, count_calls
from tests.pipeline.test_prompts import make_words

PROMPTS = ["a red heart", "a blue cat", "a red heart"]


def test_images_do_not_depend_on_batches_and_labels_are_used_in_turn(pipeline):
    arguments = {"num_images": 5, "seed": 3, "num_inference_steps": 2}
    together = sample_images(pipeline, [2, 0], batch_size=5, **arguments)
    apart = sample_images(pipeline, [2, 0], batch_size=2, **arguments)
    assert together.shape == (5, 1, 16, 16)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    one = pipeline(
        [0],
        generator=torch.Generator().manual_seed(3 + 3),
        num_inference_steps=2,
        output_type="pt",
    ).images
    torch.testing.assert_close(together[3:4], one, rtol=0, atol=1e-4)


def test_unconditional(unconditional):
    images = sample_images(unconditional, None, 3, 0, batch_size=2, num_inference_steps=1)
    assert images.shape == (3, 1, 16, 16)


def test_a_saved_model_gives_the_same_images(pipeline, tmp_path, capfd):
    pipeline.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(str(tmp_path / "model"))
    assert loaded.id2label == {0: "cat", 1: "dog", 2: "owl"}
    capfd.readouterr()
    before, after = (
        sample_images(x, [0, 1, 2], 3, seed=0, batch_size=3, num_inference_steps=2)
        for x in (pipeline, loaded)
    )
    assert torch.equal(before, after)
    assert capfd.readouterr().err == ""  # no progress bars


def test_a_folder_without_a_model_is_one_line(vae, tmp_path):
    vae.save_pretrained(tmp_path / "autoencoder")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty", "autoencoder"):
        with pytest.raises(UserError) as error:
            load_pipeline(str(tmp_path / name))
        assert f"no model found at {tmp_path / name}" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sampler", "scale", "interval", "evaluations"),
    [
        (None, 1.0, None, 4),
        (None, 2.0, None, 8),
        ("heun", 1.0, None, 7),
        ("heun", 2.0, None, 14),
        # Two of the sigmas 1, 0.75, 0.5, 0.25 are inside; Heun uses each twice except the first.
        (None, 2.0, (0.4, 0.8), 6),
        ("heun", 2.0, (0.4, 0.8), 11),
        (None, 1.0, (0.4, 0.8), 4),
    ],
)
def test_counted_evaluations_are_made(pipeline, sampler, scale, interval, evaluations):
    if sampler is not None:
        pipeline.use_sampler(sampler)
    assert count_evaluations(pipeline, 4, Guidance(scale, interval)) == evaluations
    made = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: made.append(len(inputs[0])))
    sample_images(pipeline, [0], 1, 0, 1, scale, 4, interval)
    assert sum(made) == evaluations


def draw_one(pipeline, seed: int, **asked) -> torch.Tensor:
    asked |= {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": 2}
    return pipeline(output_type="pt", **asked).images


def test_prompts_are_used_in_turn_and_encoded_once():
    words = make_words()
    arguments = {"num_images": 5, "seed": 3, "num_inference_steps": 2, "prompts": PROMPTS}
    arguments |= {"negative_prompt": "heart", "guidance_scale": 3.0}
    together = sample_images(words, None, batch_size=5, **arguments)
    encoded = count_calls(words.text_encoder)
    apart = sample_images(words, None, batch_size=2, **arguments)
    assert encoded == [2, 1, 1, 1], "the distinct prompts, and the negative one in each batch"
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    for i, prompt in enumerate([*PROMPTS, *PROMPTS[:2]]):
        asked = {"prompt": prompt, "negative_prompt": "heart", "guidance_scale": 3.0}
        one = draw_one(words, 3 + i, **asked)
        torch.testing.assert_close(together[i : i + 1], one, rtol=0, atol=1e-4)
    other = sample_images(words, None, batch_size=5, **arguments | {"negative_prompt": None})
    assert not torch.allclose(together, other, atol=1e-4)


def test_prompts_and_labels_go_together():
    words = make_words()
    shape = {"num_classes": 3, "text_width": 16}
    unet = create_denoiser("tiny", words.vae, (1, 16, 16), **shape, **NARROW_DENOISER).eval()
    both = LatentDiffusionPipeline(**words.components | {"unet": unet})
    both.set_progress_bar_config(disable=True)
    images = sample_images(both, [2, 0], 3, 0, 3, num_inference_steps=2, prompts=PROMPTS)
    for i, label in enumerate([2, 0, 2]):
        one = draw_one(both, i, class_labels=label, prompt=PROMPTS[i])
        torch.testing.assert_close(images[i : i + 1], one, rtol=0, atol=1e-4)
    unlabelled = sample_images(both, None, 3, 0, 3, num_inference_steps=2, prompts=PROMPTS)
    torch.testing.assert_close(
        unlabelled[:1], draw_one(both, 0, prompt=PROMPTS[0]), rtol=0, atol=1e-4
    )
    assert not torch.allclose(images, unlabelled, atol=1e-4)


def test_without_prompts_the_empty_prompt_is_drawn(pipeline):
    words = make_words()
    found = sample_images(words, None, 3, 0, 2, num_inference_steps=2)
    expected = sample_images(words, None, 3, 0, 2, num_inference_steps=2, prompts=[""])
    assert torch.equal(found, expected)
    for asked in ({"prompts": ["cat"]}, {"negative_prompt": "cat"}):
        with pytest.raises(UserError, match="this model was trained without prompts"):
            sample_images(pipeline, [0], 1, 0, 1, **asked)


def test_a_model_with_prompts_is_guided_unless_none_is_drawn():
    words = make_words()
    assert choose_sampling(words)[1] == Guidance(2.0)
    assert choose_sampling(words, conditional=False)[1] == Guidance()
    with pytest.raises(UserError, match=r"^--guidance_scale needs a prompt or a guide, and there"):
        choose_sampling(words, guidance_scale=3.0, conditional=False)
    for scale, interval in ((1.0, None), (2.0, None), (2.0, (0.4, 0.8))):
        made = count_calls(words.unet)
        sample_images(words, None, 1, 0, 1, scale, 4, interval, prompts=["cat"])
        assert sum(made) == count_evaluations(words, 4, Guidance(scale, interval))


def test_a_model_with_prompts_is_loaded_silently_with_its_text_encoder(tmp_path, capfd):
    words = make_words()
    words.save_pretrained(tmp_path / "model")
    capfd.readouterr()
    loaded = load_pipeline(str(tmp_path / "model"))
    found, expected = (sample_images(x, None, 2, 0, 2, prompts=PROMPTS) for x in (loaded, words))
    assert torch.equal(found, expected)
    assert capfd.readouterr().err == ""
    index = tmp_path / "model" / "model_index.json"
    nothing = {key: [None, None] for key in ("text_encoder", "tokenizer")}
    index.write_text(json.dumps(json.loads(index.read_text()) | nothing))
    with pytest.raises(UserError, match=r"no model found at .* this pipeline has no text_encoder"):
        load_pipeline(str(tmp_path / "model"))
