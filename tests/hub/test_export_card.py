import huggingface_hub
from diffusers import FlowMatchEulerDiscreteScheduler

from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.export import render_export_card
from hf_latent.models.presets import create_scheduler


def test_the_card_says_what_is_in_it_and_what_is_not(pipeline):
    card = render_export_card(pipeline, 2, "user/name")
    data = huggingface_hub.ModelCard(card).data
    assert data.base_model == "user/name"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.license is None
    assert "for class 2 (owl) alone" in card
    assert "`python -m hf_latent export --format ldm --class_label 2` of `user/name`" in card
    assert "within 1e-4 in [0, 1], if the number of steps divides 1,000, as 20 and 50 do" in card
    assert "- guidance" in card
    assert "- the other classes" in card


def test_class_0_is_a_class_and_none_is_not(pipeline):
    card = render_export_card(pipeline, 0)
    assert "for class 0 (cat) alone" in card
    assert "--class_label 0`" in card
    assert "- the other classes" in card
    card = render_export_card(pipeline)
    assert "for no class (the null label of 3 classes) alone" in card
    assert "--class_label" not in card
    assert "- the 3 classes themselves" in card
    assert "base_model" not in card


def test_a_class_without_a_name_has_its_number(pipeline):
    pipeline.register_to_config(id2label=None)
    assert "for class 2 alone" in render_export_card(pipeline, 2)


def test_the_card_of_a_diffusion_says_nothing_of_flows(unconditional):
    unconditional.scheduler = create_scheduler("epsilon")
    card = render_export_card(unconditional)
    assert "An unconditional latent diffusion model as" in card
    assert "within 1e-4 in [0, 1].\n" in card
    for word in ("classes", "guidance, which", "flow", "DPMSolver", "linear_2"):
        assert word not in card, word


def test_the_number_of_timesteps_is_the_schedulers(unconditional):
    unconditional.scheduler.register_to_config(num_train_timesteps=2000)
    assert "steps divides 2,000.\nOtherwise" in render_export_card(unconditional)


def test_the_card_of_a_shifted_flow_promises_no_equal_steps(pipeline):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3)
    card = render_export_card(pipeline)
    assert "within a few hundredths in [0, 1]: `LDMPipeline`" in card
    assert "1e-4" not in card


def test_the_card_of_another_sampler_names_euler(pipeline):
    pipeline.use_sampler("euler")
    assert "the sampler `euler`" not in render_export_card(pipeline, 0)
    pipeline.use_sampler("unipc")
    card = render_export_card(pipeline, 0)
    assert (
        "model without guidance (`guidance_scale=1`) and with\nthe sampler `euler`,\nwithin" in card
    )
    assert "within 1e-4 in [0, 1], if the number of steps divides 1,000" in card
    assert "The denoiser's output is multiplied" in card


def test_the_card_of_a_distilled_model_says_its_steps(distilled):
    card = render_export_card(distilled, 0)
    assert "pipe(batch_size=4, num_inference_steps=4).images[0]" in card
    assert "It was distilled for exactly 4 steps: another number draws bad images," in card
    assert "those of the original model,\nwithin a few hundredths in [0, 1]: `LDMPipeline`" in card
    assert "- the other classes" in card
    for words in ("- guidance", "guidance_scale", "output is multiplied", "\n\n\n"):
        assert words not in card, words


def test_the_steps_of_the_example_are_the_models_own_or_enough_for_euler(pipeline):
    assert "num_inference_steps=20)" in render_export_card(pipeline)
    pipeline.register_to_config(num_inference_steps=10)
    assert "num_inference_steps=20)" in render_export_card(pipeline)
    pipeline.use_sampler("euler")
    assert "num_inference_steps=10)" in render_export_card(pipeline)
    assert "distilled" not in render_export_card(pipeline)


def test_the_name_of_a_class_is_escaped(pipeline):
    pipeline.register_to_config(id2label={0: "<script>\n# `x`", 1: "dog", 2: "owl"})
    assert "(&lt;script&gt; # \\`x\\`)" in render_export_card(pipeline, 0)


def test_the_card_of_an_export_is_signed(pipeline):
    card = render_export_card(pipeline, 0)
    assert is_unedited(card)  # so a push may replace it
    assert not is_unedited(card.replace("class 0", "class 1"))
