"""From a folder of images with captions to a model that draws from a prompt."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_latent.data.images.config import select_image_settings
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.averages.synthesize import SynthesizeEmaConfig, synthesize_ema
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.dry_run.estimate import DryRunEnd
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from tests.conftest import make_autoencoder
from tests.models.test_text_encoder import make_bert, make_tokenizer


@pytest.fixture
def captioned(denoiser_config, tmp_path):
    """Settings of a training on images with captions."""
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    make_bert().save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    names = [f"{i}.png" for i in range(30)]
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32), dtype=np.uint8)
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    rows = [
        {"file_name": x, "text": f"a {'red' if i % 2 else 'blue'} heart"}
        for i, x in enumerate(names)
    ]
    rows += [{"file_name": "0.png", "text": "a cat"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    changes = {"data": str(folder), "text_encoder": str(tmp_path / "encoder")}
    changes |= {"caption_column": "auto", "caption_length": 6, "label_dropout": 0.5}
    changes |= {"validation_fraction": 0.2, "resize_mode": "pad", "channels": 1}
    return denoiser_config(**changes)


def test_two_commands_give_a_model_that_draws_from_a_prompt(captioned, tmp_path):
    summary = train_denoiser(captioned)
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert hash_weights(pipeline.text_encoder) == hash_weights(make_bert_of(tmp_path))
    images = pipeline(prompt="a red heart", num_images=2, num_inference_steps=2).images
    assert [image.size for image in images] == [(32, 32)] * 2
    folder = summary.model_dir.parent / "captions"
    (shard,) = folder.glob("*.safetensors")
    embeddings = load_file(shard)["embeddings"]
    assert embeddings.shape == (4, 6, 16) and embeddings.dtype == torch.float16
    card = (summary.model_dir / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card
    assert 'image = pipe(prompt="a ' in card
    assert "| text encoder (`text_encoder`) | BertModel, prompts of 6 tokens; it stayed" in card
    assert str(tmp_path) not in card


def test_pictures_of_samples_have_a_row_of_each_prompt(captioned, monkeypatch):
    drawn = []

    def keep(*arguments, prompts=None, **others):
        drawn.append(prompts)
        return sample_images(*arguments, prompts=prompts, **others)

    monkeypatch.setattr("hf_latent.training.validation.denoiser.sample_images", keep)
    train_denoiser(captioned)
    distinct = list(dict.fromkeys(drawn[-1]))
    assert drawn[-1] == [text for text in distinct for _ in range(len(drawn[-1]) // len(distinct))]
    assert sorted(distinct)[:2] == ["a blue heart", "a red heart"]


def test_a_dry_run_counts_the_tokens(captioned):
    with pytest.raises(DryRunEnd) as end:
        train_denoiser(replace(captioned, dry_run=True))
    assert end.value.figures["trained_parameters"]["unet"] > 0
    assert end.value.figures["step_seconds"] > 0


def test_a_resumed_training_is_the_same(captioned, tmp_path):
    steps = {"max_train_steps": 4, "checkpointing_steps": 2, "validation_steps": 4}
    whole = train_denoiser(replace(captioned, **steps, output_dir=str(tmp_path / "whole")))
    half = replace(captioned, **steps, output_dir=str(tmp_path / "half"))
    train_denoiser(half)
    resumed = train_denoiser(
        replace(half, resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    )
    found, expected = (
        LatentDiffusionPipeline.from_pretrained(x.model_dir).unet for x in (resumed, whole)
    )
    assert hash_weights(found) == hash_weights(expected)


def test_a_denoiser_with_captions_is_trained_further(captioned, tmp_path):
    before = train_denoiser(captioned)
    further = replace(captioned, pretrained_unet=str(before.model_dir))
    # A learning rate of nothing keeps the weights that it began with, except for rounding.
    config = replace(further, output_dir=str(tmp_path / "further"), learning_rate=1e-12)
    found, expected = (
        LatentDiffusionPipeline.from_pretrained(x.model_dir).unet.state_dict()
        for x in (train_denoiser(config), before)
    )
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight)
    without = replace(further, text_encoder=None, caption_column=None, caption_length=24)
    with pytest.raises(UserError, match="takes prompts of width 16, and this run has none"):
        train_denoiser(replace(without, output_dir=str(tmp_path / "without")))


def test_a_cache_keeps_the_captions(captioned, tmp_path):
    latents = tmp_path / "latents"
    images = select_image_settings(captioned)
    encode_latents(EncodeConfig(**images, vae=captioned.vae, output_dir=str(latents)))
    cached = {"latents": str(latents), "caption_column": None, "max_train_samples": None}
    summary = train_denoiser(replace(captioned, **cached))
    own = {"output_dir": str(tmp_path / "own"), "max_train_samples": None}
    own = train_denoiser(replace(captioned, **own))
    found, expected = (
        LatentDiffusionPipeline.from_pretrained(x.model_dir).unet for x in (summary, own)
    )
    assert hash_weights(found) == hash_weights(expected)


def test_a_cache_without_captions_is_one_line(captioned, tmp_path):
    latents = tmp_path / "latents"
    images = select_image_settings(captioned) | {"caption_column": None}
    cached = {"latents": str(latents), "caption_column": None, "max_train_samples": None}
    encode_latents(EncodeConfig(**images, vae=captioned.vae, output_dir=str(latents)))
    with pytest.raises(UserError, match="has no captions for --text_encoder: encode the"):
        train_denoiser(replace(captioned, **cached))


def test_long_captions_are_cut_and_told(captioned, caplog):
    train_denoiser(replace(captioned, caption_length=4))
    assert "2 of 4 texts are cut to 4 tokens, such as 'a blue heart'" in caplog.text


def make_bert_of(tmp_path):
    from hf_latent.models.text_encoder import load_text_encoder

    return load_text_encoder(str(tmp_path / "encoder"), 6)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_column": "auto"}, "--caption_column needs --text_encoder"),
        ({"caption_column": "auto", "latents": "x"}, "--caption_column needs --text_encoder"),
        ({"text_encoder": "minilm"}, "--text_encoder needs --caption_column"),
        ({"caption_length": 30}, "--caption_length is for --text_encoder"),
    ],
)
def test_flags_of_captions_go_together(denoiser_config, changes, message):
    with pytest.raises(UserError, match=message):
        denoiser_config(max_train_samples=None, **changes)


def test_an_autoencoder_takes_no_captions(autoencoder_config):
    with pytest.raises(UserError, match="--caption_column is not for autoencoders"):
        autoencoder_config(caption_column="auto")


def test_classes_and_captions_go_together(captioned, tmp_path):
    rows = (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    labelled = [x | {"label": "red" if "red" in x["text"] else "other"} for x in rows]
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, labelled[:-1])))
    summary = train_denoiser(captioned)
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert pipeline.num_classes == 2
    noise = torch.randn(1, 4, 8, 8)

    def draw(*labels, **prompt):
        return pipeline(*labels, latents=noise, output_type="latent", **prompt).images

    drawn = [
        draw("red"),
        draw(prompt="a cat"),
        draw("red", prompt="a cat"),
        draw(),
    ]
    for i, first in enumerate(drawn):
        assert all(not torch.equal(first, other) for other in drawn[i + 1 :])


def test_a_resume_with_another_length_is_refused(captioned):
    short = replace(captioned, checkpointing_steps=2)
    train_denoiser(short)
    with pytest.raises(UserError, match="it was trained with another caption_length"):
        train_denoiser(replace(short, caption_length=5, resume_from_checkpoint="latest"))


def test_averages_of_a_captioned_training_keep_its_text_encoder(captioned, tmp_path):
    train_denoiser(replace(captioned, ema_snapshot_steps=1))
    run = Path(captioned.output_dir)
    synthesize_ema(
        SynthesizeEmaConfig(run=str(run), sigma_rel=0.1, output_dir=str(tmp_path / "averaged"))
    )
    pipeline = LatentDiffusionPipeline.from_pretrained(tmp_path / "averaged")
    assert hash_weights(pipeline.text_encoder) == hash_weights(make_bert_of(tmp_path))
