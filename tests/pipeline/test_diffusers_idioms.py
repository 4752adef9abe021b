"""What users of diffusers' own pipelines write works here, or is refused with a word about ours."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.inspect import InspectConfig
from hf_latent.evaluation.inspection.images import open_fitting_images
from hf_latent.models.presets import create_autoencoder, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.conditions import INSTEAD
from tests.conftest import draw_latents, make_autoencoder, make_denoiser

GUIDANCE = {"guidance_scale": 3.0, "guidance_interval": [0.2, 0.8]}


@pytest.fixture
def guided(pipeline):
    pipeline.register_to_config(guidance=GUIDANCE)
    return pipeline


@pytest.mark.parametrize("way", ["components", "components and parameters", "from_pipe"])
def test_a_pipeline_of_the_same_parts_keeps_names_and_guidance(guided, way):
    expected = draw_latents(guided, ["owl", "cat"])
    if way == "components":
        again = LatentDiffusionPipeline(**guided.components)
    elif way == "from_pipe":
        again = LatentDiffusionPipeline.from_pipe(guided)
    else:
        again = LatentDiffusionPipeline(**guided.components, **guided.parameters)
    assert again.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert again.config.guidance == GUIDANCE
    assert torch.equal(draw_latents(again, ["owl", "cat"]), expected)
    other = LatentDiffusionPipeline(**guided.components, id2label={0: "a"}, guidance={})
    assert (other.id2label, other.config.guidance) == ({0: "a"}, {})


def test_a_pipeline_has_the_names_it_is_given_else_those_of_the_denoisers_last_pipeline(guided):
    others = {"id2label": {0: "a", 1: "b", 2: "c"}, "guidance": {"guidance_scale": 1.5}}
    parts = (guided.vae, guided.unet, guided.scheduler)
    other = LatentDiffusionPipeline(*parts, **others)
    assert (other.id2label, other.config.guidance) == tuple(others.values())
    assert guided.id2label == {0: "cat", 1: "dog", 2: "owl"} and guided.config.guidance == GUIDANCE
    assert LatentDiffusionPipeline(*parts).id2label == other.id2label
    assert LatentDiffusionPipeline(*parts, id2label={}).id2label == {}


def test_what_is_kept_with_the_denoiser_is_not_saved_with_it(guided, tmp_path):
    names = guided.components.keys()
    guided.save_pretrained(tmp_path)
    assert "cat" not in (tmp_path / "unet" / "config.json").read_text()
    words = {"text_encoder", "tokenizer"}
    assert names == {"vae", "unet", "scheduler", "guide_unet", *words}


def test_an_interrupted_call_ends_after_its_step(pipeline):
    seen = []

    def interrupt(pipe, i, t, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = i == 1
        return tensors

    found = draw_latents(pipeline, [0, 1], steps=5, callback_on_step_end=interrupt)
    assert pipeline.interrupt
    assert len(seen) == 2
    assert torch.equal(found, seen[-1])
    assert torch.equal(
        draw_latents(pipeline, [0, 1], steps=5)[0], draw_latents(pipeline, [0, 1], steps=5)[0]
    )
    assert not pipeline.interrupt


@pytest.mark.parametrize("name", INSTEAD)
def test_arguments_of_other_pipelines_are_refused_with_ours(pipeline, name):
    with pytest.raises(ValueError, match=f"^this pipeline takes no {name}: use ") as refused:
        pipeline([0], **{name: 1})
    assert INSTEAD[name] in str(refused.value)


def test_unknown_arguments_are_refused(pipeline):
    with pytest.raises(ValueError, match=r"^this pipeline takes no clip_skip$"):
        pipeline([0], clip_skip=1)
    with pytest.raises(ValueError, match=r"^this pipeline takes no height: use latents or image"):
        pipeline.interpolate(1, 2, class_labels=0, height=32)


@pytest.mark.parametrize("loader", [LatentDiffusionPipeline, DiffusionPipeline])
def test_a_pipeline_without_a_denoiser_encodes_and_decodes(pipeline, images, tmp_path, loader):
    pipeline.save_pretrained(tmp_path)
    trust = {} if loader is LatentDiffusionPipeline else {"trust_remote_code": True}
    loaded = loader.from_pretrained(tmp_path, unet=None, **trust)
    assert loaded.unet is None
    assert torch.equal(loaded.reconstruct(images), pipeline.reconstruct(images))
    for use in (
        lambda: loaded([0]),
        lambda: loaded.num_classes,
        lambda: loaded.get_label_ids(0),
        lambda: loaded.interpolate(1, 2),
        lambda: loaded.denoise_latents(torch.zeros(1, 4, 4, 4)),
    ):
        with pytest.raises(ValueError, match=r"^this pipeline has no unet: load it again without"):
            use()
    with pytest.raises(ValueError, match=r"^this pipeline has no unet: load it again without"):
        loaded.save_pretrained(tmp_path)


@pytest.mark.parametrize("loader", [LatentDiffusionPipeline, DiffusionPipeline])
def test_a_pipeline_without_an_autoencoder_denoises(pipeline, images, tmp_path, loader):
    pipeline.save_pretrained(tmp_path)
    trust = {} if loader is LatentDiffusionPipeline else {"trust_remote_code": True}
    loaded = loader.from_pretrained(tmp_path, vae=None, **trust)
    assert torch.equal(draw_latents(loaded, ["owl", 0]), draw_latents(pipeline, ["owl", 0]))
    for use in (
        lambda: loaded([0]),
        lambda: loaded.reconstruct(images),
        lambda: loaded.decode_latents(torch.zeros(1, 4, 4, 4)),
        lambda: loaded([0], image=images[:1], output_type="latent"),
    ):
        with pytest.raises(ValueError, match=r"^this pipeline has no vae: load it again without"):
            use()


def test_class_names_without_regard_to_case(vae):
    names = {0: "Cat, big", 1: "dog", 2: "DOG"}
    made = LatentDiffusionPipeline(
        vae, make_denoiser(vae), create_scheduler("flow"), id2label=names
    )
    assert made.get_label_ids(["Cat, big", "cat, BIG", "dog", "DOG"]) == [0, 0, 1, 2]
    assert made.get_label_ids("cat, big") == [0]
    for ambiguous in ("Dog", "Cat"):
        with pytest.raises(ValueError, match=f"class label {ambiguous} is not in the model"):
            made.get_label_ids(ambiguous)


def test_an_autoencoder_of_other_latents_or_channels_is_refused(pipeline, tmp_path):
    parts = pipeline.components
    with pytest.raises(ValueError, match="the latents have 3 channels and the denoiser takes 4"):
        LatentDiffusionPipeline(**parts | {"vae": make_autoencoder(latent_channels=3)})
    pipeline.save_pretrained(tmp_path)
    message = "the given vae takes images of 3 channels and the model's own of 1"
    with pytest.raises(ValueError, match=message):
        LatentDiffusionPipeline.from_pretrained(tmp_path, vae=make_autoencoder(3))
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, vae=pipeline.vae)
    assert loaded.vae is pipeline.vae
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"_class_name": "Other"}))
    with pytest.raises(ValueError, match="Other is no autoencoder for images: use AutoencoderKL, "):
        LatentDiffusionPipeline.from_pretrained(tmp_path, vae=pipeline.vae)


def test_sampling_that_overflows_is_refused(pipeline):
    pipeline.unet.conv_out.weight.data.fill_(1e38)
    for output_type in ("pil", "latent"):
        with pytest.raises(ValueError, match="the images are not finite: lower guidance_scale"):
            pipeline([0], num_inference_steps=2, output_type=output_type)
    with pytest.raises(UserError, match="the images are not finite"):
        sample_images(pipeline, [0], 1, 0, 1, num_inference_steps=2)


def test_a_non_square_autoencoder_tiles_also_in_plain_diffusers(tmp_path):
    made = create_autoencoder("tiny", 3, (32, 48))
    made.save_pretrained(tmp_path)
    for vae in (made, AutoencoderKL.from_pretrained(tmp_path)):
        vae.eval().enable_tiling()
        images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode()
            assert latents.shape == (1, 8, 16, 24)
            assert vae.decode(latents).sample.shape == images.shape
    config = InspectConfig(vae="v", output_dir="o", channels=3, max_train_samples=4)
    splits, *_ = open_fitting_images(config, {"v": made}, 10)
    assert splits.image_shape == (3, 32, 48)
