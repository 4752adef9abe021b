import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_latent.data.images.captions import CaptionTexts
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.shards import write_shards
from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.images import captioned
from hf_latent.evaluation.images.captioned import (
    HeldOutCaptions,
    draw_conditions,
    measure_clip_score,
    measure_retrieval,
)
from hf_latent.evaluation.images.generated import write_samples
from hf_latent.evaluation.images.reference import RealImages, open_real_images
from hf_latent.evaluation.measures import retrieval
from hf_latent.evaluation.measures.clip_score import load_clip
from hf_latent.models.presets import create_denoiser
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import NARROW_DENOISER
from tests.evaluation.measures.test_clip_score import save_clip
from tests.pipeline.test_prompts import make_words

WORDS = ("red", "blue", "heart", "cat")
TEXTS = CaptionTexts(("", "a blue cat", "a cat", "a red heart", "red"), 2)
HELD_OUT = HeldOutCaptions(TEXTS, torch.tensor([1, 3, 4]), torch.tensor([[2, 1], [3, -1], [4, 3]]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 60 grey images of two classes; each fourth one has no caption."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for i in range(60):
        shade = np.full((16, 16), 40 * (i % 4), np.uint8)
        shade[0, 0] = i  # no two images are equal
        kind = folder / ("even" if i % 2 == 0 else "odd")
        kind.mkdir(exist_ok=True)
        Image.fromarray(shade).save(kind / f"{i}.png")
        texts = [f"a {WORDS[i % 4]}", *(["red heart"] if i % 8 == 1 else [])]
        rows += [{"file_name": f"{kind.name}/{i}.png", "text": x} for x in texts if i % 4]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return folder


@pytest.fixture(scope="module")
def splits(folder):
    config = ImagesConfig(data=str(folder), caption_column="auto", resolution=16)
    return open_images(replace(config, validation_fraction=0.4))


@pytest.fixture
def words():
    return make_words()


def shards_of(folder, **tensors):
    count = len(next(iter(tensors.values())))
    return write_shards(
        folder, count, lambda rows: {k: v[list(rows)] for k, v in tensors.items()}, {}
    )


def test_only_held_out_images_with_captions_are_drawn(splits):
    found = HeldOutCaptions.of(splits.validation, splits.captions)
    images = splits.validation.read_uint8(torch.arange(len(splits.validation)))
    shades = images[:, 0, 8, 8]
    assert 0 < len(found.rows) < len(images)
    assert torch.equal(found.rows, (shades > 0).nonzero().flatten())
    for row, prompt in zip(found.rows, found.prompts, strict=True):
        assert prompt == f"a {WORDS[shades[row] // 40]}"
    without = splits.validation.subset(np.flatnonzero(shades.numpy() == 0))
    for dataset, captions in ((without, splits.captions), (splits.validation, None)):
        with pytest.raises(UserError, match="no held-out image has one: name the column") as error:
            HeldOutCaptions.of(dataset, captions)
        assert "\n" not in str(error.value)


def test_captions_are_drawn_in_turn():
    assert HELD_OUT.prompts == ["a cat", "a red heart", "red"]
    drawn = HELD_OUT.in_turn(5)
    assert drawn.prompts == ["a cat", "a red heart", "red", "a cat", "a red heart"]
    assert drawn.rows.tolist() == [1, 3, 4, 1, 3]
    assert drawn.caption_ids.tolist() == [[2, 1], [3, -1], [4, 3], [2, 1], [3, -1]]
    assert HELD_OUT.in_turn(2).prompts == ["a cat", "a red heart"]


def test_labels_and_prompts_are_those_of_the_reference_images(splits):
    real = RealImages.choose(splits, 30, 0)
    reference = real.subset(real.reference)
    labels, prompts = draw_conditions(reference, splits.captions, True)
    assert torch.equal(labels, real.train.labels[real.reference])
    shades = reference.read_uint8(torch.arange(len(reference)))[:, 0, 8, 8]
    assert prompts == [f"a {WORDS[x // 40]}" if x else "" for x in shades.tolist()]
    assert draw_conditions(reference, splits.captions, False) == (None, prompts)
    without, no_prompts = draw_conditions(reference, None, True)
    assert torch.equal(without, labels) and no_prompts is None
    assert draw_conditions(reference, None, False) == (None, None)


def test_captions_of_a_model_with_words_are_found_without_a_setting(folder, words, tmp_path):
    config = EvaluateConfig(model="m", output_dir="out", data=str(folder))
    assert open_real_images(config, words)[0].captions.texts[1:3] == ("a blue", "a cat")
    unet = create_denoiser("tiny", words.vae, (1, 16, 16), **NARROW_DENOISER)
    without = LatentDiffusionPipeline(words.vae, unet, words.scheduler)
    assert open_real_images(config, without)[0].captions is None
    for i in range(24):
        Image.new("L", (16, 16), i).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"has no captions: give each .*--caption_column") as error:
        open_real_images(replace(config, data=str(tmp_path)), words)
    assert "\n" not in str(error.value)


def test_samples_are_drawn_from_prompts_and_kept_with_them(words, tmp_path):
    config = EvaluateConfig(
        model="m",
        output_dir=str(tmp_path),
        num_inference_steps=1,
        guidance_scale=1.0,
        batch_size=2,
    )
    prompts = ["a red heart", "a cat", "a blue cat"]

    def write(prompts):
        with tqdm(disable=True) as bar:
            written = write_samples(words, None, 3, config, {}, bar, prompts)
        return written.read("images", torch.arange(3)).int()

    found = write(prompts)
    for i, prompt in enumerate(prompts):
        (alone,) = words(
            prompt=prompt,
            generator=torch.Generator().manual_seed(i),
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="pt",
            return_dict=False,
        )
        assert (found[i] - (alone[0] * 255).round().int()).abs().max() <= 1
    assert torch.equal(write(prompts), found)
    with pytest.raises(UserError, match="generated was made with another prompts: remove"):
        write(["a red heart", "a cat", "a red cat"])
    words.tokenizer.model_max_length += 1
    with pytest.raises(UserError, match="another prompts"):
        write(prompts)
    words.tokenizer.model_max_length -= 1
    next(words.text_encoder.parameters()).data += 1
    with pytest.raises(UserError, match="another text_encoder"):
        write(prompts)


@pytest.fixture
def judged(splits, words, tmp_path, monkeypatch):
    """Measure samples that are the held-out images themselves, shifted by some rows."""
    monkeypatch.setattr(retrieval, "STEPS", 60)
    monkeypatch.setattr(retrieval, "BATCH_SIZE", 32)
    monkeypatch.setattr(retrieval, "LEARNING_RATE", 0.05)
    real = RealImages.choose(splits, 10, 0)
    captions = HeldOutCaptions.of(real.held_out, splits.captions)

    def features(dataset):
        images = dataset.read_uint8(torch.arange(len(dataset)))
        return torch.nn.functional.one_hot(images[:, 0, 8, 8].long() // 40, 4).float()

    vectors = {
        name: shards_of(tmp_path / name, vectors=features(dataset))
        for name, dataset in (("train", real.train), ("held_out", real.held_out))
    }

    def measure(shift: int) -> dict:
        rows = captions.in_turn(25).rows.roll(shift)
        samples = shards_of(
            tmp_path / f"shifted by {shift}", features=features(real.held_out)[rows]
        )
        with tqdm(disable=False) as bar:
            figures = measure_retrieval(samples, captions, real.train, vectors, words, 0, bar)
            assert bar.n == bar.total > 60 * 32
        return figures

    return measure, real, captions


def test_samples_that_show_their_captions_retrieve_them_like_real_images(judged, monkeypatch):
    measure, real, captions = judged
    figures = measure(0)
    with_captions = int((real.train.caption_ids[:, 0] >= 0).sum())
    assert figures["retrieval_judge_train_images"] == with_captions < len(real.train)
    assert figures["retrieval_real_images"] == len(captions.rows)
    assert figures["retrieval_num_captions"] == figures["real_retrieval_num_captions"] == 4
    assert figures["retrieval_recall_at_1"] == figures["real_retrieval_recall_at_1"] == 1
    assert figures["retrieval_median_rank"] == figures["real_retrieval_median_rank"] == 1
    wrong, rows = measure(1), captions.in_turn(25).rows
    shades = real.held_out.read_uint8(rows)[:, 0, 8, 8]
    still_right = (shades == shades.roll(1)).double().mean().item()
    assert wrong["retrieval_recall_at_1"] == pytest.approx(still_right)
    assert still_right < 1 and wrong["real_retrieval_recall_at_1"] == 1
    monkeypatch.setattr(captioned, "MOST_JUDGE_IMAGES", 9)
    assert measure(0)["retrieval_judge_train_images"] == 9


def test_the_clip_score_is_of_images_with_their_first_captions(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "CLIP_BATCH_SIZE", 4)
    clip = load_clip(save_clip(tmp_path / "clip"))
    captions = HeldOutCaptions.of(splits.validation, splits.captions)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (25, 1, 16, 16), dtype=torch.uint8, generator=generator)
    samples = shards_of(tmp_path / "samples", images=images)
    with tqdm(disable=False) as bar:
        figures = measure_clip_score(clip, samples, captions, splits.validation, None, bar)
        assert bar.n == 25 + len(captions.rows)
    prompts = [captions.prompts[i % len(captions.rows)] for i in range(25)]
    expected = clip.scores(images, prompts).mean().item()
    assert figures["clip_score"] == pytest.approx(expected, abs=1e-3)
    real = splits.validation.read_uint8(captions.rows)
    expected = clip.scores(real, captions.prompts).mean().item()
    assert figures["real_clip_score"] == pytest.approx(expected, abs=1e-3)
    measured = shards_of(tmp_path / "measured", images=torch.cat([images, 255 - images], dim=1))
    with tqdm(disable=True) as bar:
        found = measure_clip_score(clip, measured, captions, splits.validation, (0,), bar)
    assert found == figures
