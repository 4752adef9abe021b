import huggingface_hub
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.export import render_export_card
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import IMAGE_VALUES
from tests.conftest import make_autoencoder, make_denoiser
from tests.hub.test_stable_diffusion import make_words


def test_the_card_says_what_is_in_it_and_what_is_not(pipeline):
    card = render_export_card(pipeline, "user/name")
    data = huggingface_hub.ModelCard(card).data
    assert data.base_model == "user/name"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.license is None
    for text in (
        "A class-conditional latent diffusion model as diffusers' stock `DiTPipeline`.",
        'labels = pipe.get_label_ids(["cat"])',
        "images = pipe(labels, guidance_scale=2, num_inference_steps=20).images\nimages[0].save",
        "own defaults, 50 steps and guidance 4, are not this model's.",
        "`python -m hf_latent export --format dit` of `user/name`",
        "Rows that are no class are\nthe original's null label.",
        "with the same guidance at all noise levels, within a few hundredths in [0, 1]",
        "- the licence and the card of the original",
    ):
        assert text in card, text
    for word in ("interval", "guide_unet", "multiplied", "distilled", "\n\n\n"):
        assert word not in card, word
    assert "base_model" not in render_export_card(pipeline)


def test_a_class_without_a_name_has_its_number(pipeline):
    pipeline.register_to_config(id2label=None)
    assert "labels = [0]  # from 0 to 2\n" in render_export_card(pipeline)


def test_the_card_of_a_diffusion_says_nothing_of_flows(unconditional):
    unconditional.scheduler = create_scheduler("epsilon")
    card = render_export_card(unconditional)
    assert "An unconditional latent diffusion model as diffusers' stock `LDMPipeline`" in card
    assert "images = pipe(batch_size=4, num_inference_steps=20).images\nimages[0].save" in card
    assert "original model, within 1e-4 in [0, 1].\n" in card
    for word in ("class", "guidance", "flow", "DPMSolver", "distilled", "\n\n\n"):
        assert word not in card.partition("# A latent")[2], word


def test_the_card_of_euler_names_equal_steps(unconditional):
    unconditional.use_sampler("euler")
    card = render_export_card(unconditional)
    assert "within 1e-4 in [0, 1], if the number of steps divides 1,000, as 20 and 50 do" in card
    assert "The denoiser's output is multiplied by the same factor" in card
    unconditional.scheduler.register_to_config(num_train_timesteps=2000)
    assert "steps divides 2,000.\nOtherwise" in render_export_card(unconditional)


def test_the_card_of_a_shifted_flow_promises_no_equal_steps(pipeline):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3)
    card = render_export_card(pipeline)
    assert "within a few hundredths in [0, 1]: `DiTPipeline`" in card
    assert "1e-4" not in card


def test_the_card_says_that_heun_became_euler(pipeline):
    pipeline.use_sampler("heun")
    assert "levels, with the sampler `euler`, within" in render_export_card(pipeline)


def test_the_card_of_a_distilled_model_says_its_steps(distilled):
    card = render_export_card(distilled)
    assert "pipe(labels, guidance_scale=1, num_inference_steps=4).images" in card
    assert "It was distilled for exactly 4 steps and guidance 1: others draw bad images" in card
    assert "those of the original model, within a few hundredths in [0, 1]: `DiTPipe" in card
    for words in ("same guidance", "output is multiplied", "\n\n\n"):
        assert words not in card, words


def test_the_steps_and_the_guidance_of_the_example_are_the_models_own(pipeline):
    pipeline.register_to_config(num_inference_steps=10, guidance={"guidance_scale": 1.5})
    assert "guidance_scale=1.5, num_inference_steps=10)" in render_export_card(pipeline)
    pipeline.register_to_config(guidance={"guidance_interval": [0, 0.8]})
    card = render_export_card(pipeline)
    assert "the original guides only between the noise levels 0 and 0.8;" in card


def test_the_card_names_what_the_stock_pipeline_lacks(pipeline):
    pipeline.register_to_config(guidance={"guidance_scale": 0.5})
    card = render_export_card(pipeline)
    assert "guidance_scale=1, " in card and "- guidance below 1, which `DiTPipeline` lacks" in card
    pipeline.vae.register_to_config(**{IMAGE_VALUES: {"range": [[0, 4095]], "dtype": "uint16"}})
    assert "- the range of the original's values: images here are" in render_export_card(pipeline)


def test_images_that_are_no_pictures_are_drawn_as_an_array():
    vae = make_autoencoder(6)
    model = LatentDiffusionPipeline(vae, make_denoiser(vae), create_scheduler("flow"))
    card = render_export_card(model)
    assert 'num_inference_steps=20, output_type="np").images\nprint(images.shape)' in card
    assert "save(" not in card


def test_the_card_of_a_model_with_prompts():
    model = make_words(num_inference_steps=8)
    card = render_export_card(model, "user/name")
    data = huggingface_hub.ModelCard(card).data
    assert data.base_model == "user/name"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "text-to-image"
    assert data.tags == ["latent-diffusion", "hf-latent", "safetensors"]
    for text in (
        "A text-to-image latent diffusion model as diffusers' stock `StableDiffusionPipeline`.",
        'prompts = ["a photo of a cat"]  # in the style',
        "images = pipe(prompts, guidance_scale=2, num_inference_steps=8).images\nimages[0].save",
        "own defaults, 50 steps and guidance 7.5, are not this model's.",
        "Guidance leads away from `negative_prompt`",
        "`AutoPipelineForImage2Image` and `AutoPipelineForInpainting` load this folder too.",
        "expects a `CLIPTextModel` as `text_encoder`; a `BertModel` works as well.",
        "`python -m hf_latent export --format stable-diffusion` of `user/name`",
        "From the same noise and prompts its images are those of the original model with the same",
    ):
        assert text in card, text
    for word in ("class", "label", "distilled", "multiplied", "image to image", "\n\n\n"):
        assert word not in card.partition("# A latent")[2], word


@pytest.mark.parametrize(
    ("settings", "lacks"),
    [
        ({"num_classes": 3}, "the original's classes: images here are those of its null label;"),
        ({"size": (16, 32)}, "image to image and inpainting, whose pipelines load square models"),
        ({"channels": 4}, "image to image and inpainting, whose pipelines take images of four"),
        ({"latent_channels": 8}, "inpainting, whose pipeline is for latents of 4 channels;"),
        ({"guided": True}, "the original's guide (`guide_unet`): guidance here is that of the pro"),
    ],
)
def test_the_card_of_a_model_with_prompts_names_what_it_lacks(settings, lacks):
    card = render_export_card(make_words(**settings))
    assert f"- {lacks}" in card
    assert ("is part of a bias of its time embedding" in card) == ("num_classes" in settings)
    loads_too = card.partition("AutoPipelineForImage2Image` ")[2][:4]
    assert loads_too == (
        "" if "image to image" in lacks else "load" if "latent" in lacks else "and "
    )


def test_the_card_of_a_distilled_model_with_prompts():
    card = render_export_card(make_words(num_inference_steps=4, distilled=True))
    assert (
        "exactly 4 steps and guidance 1: others draw bad images, also the 50 steps and gui" in card
    )
    assert "negative_prompt" not in card and "guidance_scale=1, num_inference_steps=4)" in card


def test_the_name_of_a_class_stays_in_its_string(pipeline):
    pipeline.register_to_config(id2label={0: ' "];\n```\nx', 1: "dog", 2: "owl"})
    assert '(["\\"];\\n```\\nx"])' in render_export_card(pipeline)


def test_the_card_of_an_export_is_signed(pipeline):
    card = render_export_card(pipeline)
    assert is_unedited(card)  # so a push may replace it
    assert not is_unedited(card.replace('["cat"]', '["dog"]'))
