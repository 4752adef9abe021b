"""The card of a pipeline, from the files of its folder."""

import ast
import json
import math

import huggingface_hub
import pytest

from hf_latent.errors import UserError
from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.output import write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import make_denoiser
from tests.hub.saved_models import blocks, measured, results, section, unlisted, write_reports

SHOWN_CLASSES = 100
PICTURES = ("samples.png", "reconstructions.png", "closest_by_latents.png")


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def card(folder, pipeline):
    write_reports(folder, pipeline, pictures=PICTURES)
    return render_model_card(folder, "ada/clothes", "mit")


def test_metadata(card):
    data = huggingface_hub.ModelCard(card).data.to_dict()
    assert {key: value for key, value in data.items() if key != "model-index"} == {
        "license": "mit",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": [
            "class-conditional-image-generation",
            "latent-diffusion",
            "hf-latent",
            "safetensors",
        ],
        "datasets": ["zalando-datasets/fashion_mnist"],
    }
    (index,) = data["model-index"]
    assert index["name"] == "clothes"
    generation, reconstruction = index["results"]
    assert generation["task"]["type"] == "unconditional-image-generation"
    assert generation["dataset"] == {
        "name": "fashion_mnist_full",
        "type": "zalando-datasets/fashion_mnist",
    }
    how = "guidance 2, 20 steps, 10,000 images"
    on = f"efficientnet-lite0 features, {how}"
    parts = "of 5 parts of 2,000 images, efficientnet-lite0 features, guidance 2, 20 steps"
    copies, features = (
        "copies of 60,000 training images among 10,000",
        "efficientnet-lite0 features",
    )
    latents, drawn = "by the model's own latents", "guidance 2, 20 steps"
    classifier = "accuracy on real images of a classifier trained on these"
    assert generation["metrics"] == [
        {"type": "fd", "name": f"FD, {on}", "value": 6.1722},
        {
            "type": "fd",
            "name": "FD with a perfect denoiser, efficientnet-lite0 features, 10,000 images",
            "value": 1.0377,
        },
        {"type": "fd", "name": f"mean FD {parts}", "value": 6.6995},
        {"type": "fd_deviation", "name": f"deviation of the FD {parts}", "value": 0.077224},
        {"type": "kid", "name": f"KID, {on}", "value": 0.0046067},
        {"type": "precision", "name": f"precision, {on}", "value": 0.7101},
        {"type": "recall", "name": f"recall, {on}", "value": 0.5356},
        {"type": "density", "name": f"density, {on}", "value": 0.63674},
        {"type": "coverage", "name": f"coverage, {on}", "value": 0.6082},
        {"type": "label_agreement", "name": f"label agreement, {how}", "value": 0.9488},
        {"type": "accuracy", "name": f"{classifier}, {how}", "value": 0.8024},
        {"type": "copies", "name": f"{copies} samples, {latents}, {drawn}", "value": 0},
        {"type": "copies", "name": f"{copies} held-out images, {latents}", "value": 50},
        {"type": "copies", "name": f"{copies} samples, {features}, {drawn}", "value": 224},
        {"type": "copies", "name": f"{copies} held-out images, {features}", "value": 639},
    ]
    held_out, unpadded = "10,000 held-out images", "without the padding"
    assert reconstruction["task"]["type"] == "image-to-image"
    assert reconstruction["metrics"] == [
        {"type": "psnr", "name": f"PSNR (dB), {held_out}", "value": 32.772},
        {"type": "ssim", "name": f"SSIM, {held_out}", "value": 0.97669},
        {"type": "psnr", "name": f"PSNR (dB), {unpadded}, {held_out}", "value": 31.621},
        {"type": "ssim", "name": f"SSIM, {unpadded}, {held_out}", "value": 0.97139},
        {"type": "rfd", "name": f"rFD, efficientnet-lite0 features, {held_out}", "value": 0.87416},
    ]


def test_the_hubs_own_validation_takes_the_card(process, folder, pipeline, card):
    code = "import huggingface_hub\nhuggingface_hub.ModelCard({!r}).validate()"
    for path in (folder / "metrics.json", folder / "training.json", None):
        outcome = process.run(code.format(render_model_card(folder)))
        assert outcome.status == 0, outcome.err
        if path:
            path.unlink()
    assert process.run(code.format(card.replace("license: mit", "license: [a"))).status == 1


def test_figures_are_shown_beside_those_of_real_images(card):
    figures = section(card, "Figures")
    for row in (
        "| 10,000 images | generated | with a perfect denoiser | real |",
        "| FD | 6.17 | 1.04 | 0.22 |",
        "| FD of 5 parts of 2,000, ± deviation | 6.70 ± 0.08 |  | 0.92 ± 0.05 |",
        "| KID | 0.00461 |  | -0.00002 |",
        "| precision | 0.710 |  | 0.858 |",
        "| recall | 0.536 |  | 0.847 |",
        "| density | 0.637 |  | 1.028 |",
        "| coverage | 0.608 |  | 0.973 |",
        "| label agreement | 0.949 |  | 0.907 |",
        "| accuracy on real images of a classifier trained on these | 0.802 |  | 0.889 |",
        "| PSNR | 32.77 dB |",
        "| SSIM | 0.9767 |",
        "| PSNR, without the padding | 31.62 dB |",
        "| SSIM, without the padding | 0.9714 |",
        "| FD of the reconstructions (rFD) | 0.87 |",
    ):
        assert row in figures.splitlines(), row
    assert "guidance 2, 20 steps (40 evaluations of the denoiser per image)" in figures
    assert "training images of fashion\\_mnist" not in figures
    assert "of fashion_mnist_full by features of efficientnet-lite0" in figures
    assert "It is not the FID of papers" in figures
    assert "`comparable_if_equal` is ef9f5b461972ee3b." in figures
    assert "What the autoencoder keeps of 10,000 held-out images:" in figures


def test_copies_are_shown_beside_those_of_held_out_images(folder, pipeline, card):
    copies = section(card, "Does it copy?")
    assert "| copies of 60,000 training images | among samples | among held-out images |" in copies
    assert "| by the model's own latents | 0 of 10,000 | 50 of 10,000 |" in copies
    assert "| by features | 224 of 10,000 | 639 of 10,000 |" in copies
    assert "less than 0.5 times as far" in copies
    assert "no more than chance explains" in copies
    for found, verdict in ((True, "**The model copies"), (None, "too few images to tell")):
        changed = {"memorisation_found": found, "held_out_images": 9000}
        write_json(folder / "metrics.json", measured(pipeline, **changed))
        card = render_model_card(folder)
        assert "| 0 of 10,000 | 50 of 9,000 |" in card
        assert verdict in section(card, "Does it copy?")
        assert "chance explains" not in card


def test_the_training_and_its_recipe(card):
    assert section(card, "Data").strip() == (
        "60,000 training images of fashion_mnist_full, padded to 16x16 pixels, 1 channel. 10,000 "
        "other images were held out and never trained on (fingerprint `0528c054765cc27e`)."
    )
    training = section(card, "Training")
    assert (
        "18,000 steps of 192 images (3,456,000 images seen) in 90 minutes, 640 images per second, "
        "on 3 processes, each with 1 thread of a machine with 4 CPU cores."
    ) in training
    for row in (
        "| loss of 512 held-out images, over all noise levels | 0.5123 |",
        "| encoding the images, before the training | 61 seconds |",
        "| peak memory per process | 1,234 MB |",
        "| the autoencoder's training | 6,000 steps of 32 images (192,000 images seen) in 28 "
        "minutes |",
        "| the autoencoder's data | 59,000 training images of fashion_mnist_full |",
        "| the autoencoder's PSNR, 1,000 held-out images | 32.77 dB |",
    ):
        assert row in training.splitlines(), row
    assert blocks(card, "yaml") == ["data: fashion_mnist_full\nmax_train_steps: 18000\n"]
    assert "Made with Python 3.11.7, torch 2.13.0, diffusers 0.42.1." in training


def test_what_it_is(card, pipeline):
    facts = section(card, "What it is")
    unet = sum(x.numel() for x in pipeline.unet.parameters())
    assert "| image | 1 x 16 x 16 (channels, height, width): 256 values |" in facts
    assert "| latent | 4 x 4 x 4: 64 values, 4 times fewer |" in facts
    assert "| autoencoder (`vae`) | AutoencoderKL, fashion-mnist-f4, 19,093 parameters" in facts
    assert f"| denoiser (`unet`) | UNet2DModel, {unet:,} parameters, " in facts
    assert "UniPCMultistepScheduler, objective flow |" in facts


def test_the_denoiser_fixes_the_size_whatever_a_report_says(folder, pipeline):
    write_reports(folder, pipeline, {"image_shape": [1, 32, 32]}, None)
    card = render_model_card(folder)
    assert "| image | 1 x 16 x 16 (" in card and "and 16x16 pixels: the denoiser" in card


@pytest.mark.parametrize("name", ['x"); import os; ("', "/home/ada/model", "../model", "a b"])
def test_a_report_cannot_put_code_into_the_examples(folder, pipeline, name):
    write_reports(folder, pipeline, None, {"load_from": name})
    assert render_model_card(folder).count('"path/to/model"') == 2


def test_limits_are_what_was_measured(folder, pipeline, card):
    limits = section(card, "Limits")
    assert "- Every image has 1 channel and 16x16 pixels" in limits
    assert (
        "- The autoencoder loses something, so even a perfect denoiser would reach an FD of 1.04; "
        "this one reaches 6.17, and real images 0.22."
    ) in limits
    assert "Not measured" not in limits and "Not known" not in limits
    assert "were searched" not in limits
    write_reports(folder, pipeline, {"train_images": 13_000}, pictures=PICTURES)
    assert (
        "- Copies were searched among 60,000 images of fashion_mnist_full; the model was trained "
        "on 13,000."
    ) in section(render_model_card(folder), "Limits")
    spaces = ("latents", "features")
    unknown = {f"memorisation_{space}_copies": None for space in spaces}
    write_reports(folder, pipeline, {"train_images": 13_000}, unknown)
    assert "were searched" not in render_model_card(folder)


def test_what_was_not_measured_is_absent_and_said(folder, pipeline):
    write_reports(folder, pipeline, metrics=None, pictures=PICTURES)
    card = render_model_card(folder)
    for absent in ("## Figures", "## Does it copy", "closest_by", "FD", "model-index", "None"):
        assert absent not in card, absent
    assert "## Training" in card and card_pictures(card) == ["samples.png"]
    assert "*Samples, one row per class, drawn at the end of the training; not selected.*" in card
    limits = section(card, "Limits")
    assert "keeps of held-out images: 32.8 dB PSNR" in limits
    assert "held out in the evaluation" not in card
    assert (
        "- Not measured: how close its images come to real ones, whether it copies training "
        "images; see `python -m hf_latent evaluate`."
    ) in limits
    absent = {"autoencoder_held_out_psnr_db": None, "encode_seconds": 0.0}
    write_reports(folder, pipeline, absent, None)
    card = render_model_card(folder)
    assert "images, what its autoencoder loses; see" in section(card, "Limits")
    assert "encoding the images" not in card and "autoencoder's PSNR" not in card


def test_a_model_without_reports_has_a_card_that_invents_nothing(folder):
    card = render_model_card(folder)
    for absent in ("## Figures", "## Data", "## Training", "datasets:", "license:", "None", "png)"):
        assert absent not in card, absent
    assert "model_name" not in card
    assert "# Latent diffusion model\n" in card
    assert "- Not known: what it was trained on, and how." in card
    assert huggingface_hub.ModelCard(card).data.library_name == "diffusers"


@pytest.mark.parametrize("part", ["vae", "unet"])
@pytest.mark.parametrize("report", ["metrics", "training"])
def test_a_report_about_other_weights_is_left_out(folder, pipeline, part, report):
    other = {f"{part}_weights_sha256": "0" * 64}
    reports = {name: other if name == report else () for name in ("metrics", "training")}
    write_reports(folder, pipeline, **reports, pictures=PICTURES)
    card = render_model_card(folder)
    assert ("6.17" in card) == (report != "metrics")
    assert ("closest_by_latents.png" in card) == (report != "metrics")
    assert ("18,000 steps" in card) == (report != "training")
    assert ("max_train_steps" in card) == (report != "training")
    write_reports(folder, pipeline, other, other)
    assert card_pictures(render_model_card(folder)) == []


def test_a_figure_that_is_no_number_is_left_out(folder, pipeline):
    absent = {"recall": math.nan, "kid": None, "real_fd": None, "floor_fd": None, "fd": "6.17"}
    absent |= {"real_density": None}
    write_reports(folder, pipeline, metrics=absent)
    card = render_model_card(folder)
    figures = section(card, "Figures")
    assert "| precision | 0.710 | 0.858 |" in figures
    assert "| density | 0.637 |  |" in figures
    for name in ("recall", "KID", "FD |", "6.17", "perfect", "None", "nan"):
        assert name not in figures, name
    assert [x["type"] for x in results(card) if x["type"] != "copies"] == [
        *("fd", "fd_deviation", "precision", "density", "coverage", "label_agreement", "accuracy"),
        *("psnr", "ssim", "psnr", "ssim", "rfd"),
    ]
    assert unlisted(card, "Figures") == []


def test_the_metadata_omit_distances_of_an_unknown_network(folder, pipeline):
    write_reports(folder, pipeline, metrics={"feature_extractor": None})
    types = [x["type"] for x in results(render_model_card(folder))]
    assert types == [
        *("label_agreement", "accuracy", "copies", "copies", "psnr", "ssim", "psnr", "ssim"),
    ]


def test_texts_of_reports_are_escaped(folder, pipeline):
    planted = "a|b`<script>\n---\n# x {{ 777 * 7 }}"
    wrong = {key: planted for key in ("data", "device", "autoencoder", "torch_version")}
    wrong |= {"validation_fingerprint": planted}
    write_reports(folder, pipeline, wrong, {"data": planted, "comparable_if_equal": planted})
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": planted + '"]); print("', "1": "```\n# y", "2": "b"}
    (folder / "model_index.json").write_text(json.dumps(index))
    card = render_model_card(folder)
    prose = card.split("\n---\n", 1)[1]
    for block in blocks(card, "python") + blocks(card, "yaml"):
        compile(block, "block", "exec") if "import" in block else None
        prose = prose.replace(block, "")
    assert "<script>" not in prose and "\n# x" not in card and "\n# y" not in card
    assert "5439" not in card
    assert "| 0 | a\\|b\\`&lt;script&gt; --- # x {{ 777 \\* 7 }}" in card
    data = huggingface_hub.ModelCard(card).data.to_dict()
    assert data["library_name"] == "diffusers"
    assert "\n" not in "".join(data["model-index"][0]["results"][0]["dataset"].values())


def test_a_data_set_of_the_hub_is_named_and_a_folder_is_not(folder, pipeline):
    for data, expected in (("owner/set", ["owner/set"]), ("images", None)):
        write_reports(folder, pipeline, {"data": data}, {"data": data})
        metadata = huggingface_hub.ModelCard(render_model_card(folder)).data.to_dict()
        assert metadata.get("datasets") == expected
        assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == data


def test_many_classes_are_cut_short_and_in_order(folder):
    index = json.loads((folder / "model_index.json").read_text())
    names = {str(i): f"class {i}" for i in range(SHOWN_CLASSES + 5)}
    index["id2label"] = dict(reversed(names.items()))
    (folder / "model_index.json").write_text(json.dumps(index))
    card = render_model_card(folder)
    assert card.index("| 2 | class 2 |") < card.index("| 10 | class 10 |")
    assert f"| class {SHOWN_CLASSES} |" not in card
    assert "5 more are in `model_index.json`." in card
    assert 'pipe(class_labels=["class 0"])' in card


@pytest.mark.parametrize(
    ("name", "shown"), [("Schuhé", '"Schuhé"'), ('a"\\', '"a\\"\\\\"'), ("\u202ex", '"\\u202ex"')]
)
def test_a_class_is_named_in_python_as_it_reads_and_nothing_is_hidden(folder, name, shown):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": name}}))
    code = blocks(render_model_card(folder), "python")[0]
    assert f"pipe(class_labels=[{shown}])" in code
    assert ast.literal_eval(shown) == name


def test_models_without_names_of_classes_and_without_classes(pipeline, unconditional, tmp_path):
    LatentDiffusionPipeline(
        pipeline.vae, make_denoiser(pipeline.vae), pipeline.scheduler
    ).save_pretrained(tmp_path / "numbers")
    card = render_model_card(tmp_path / "numbers")
    assert "3 classes without names" in card and "pipe(class_labels=[0])" in card
    unconditional.save_pretrained(tmp_path / "none")
    card = render_model_card(tmp_path / "none")
    assert "pipe(num_images=1)" in card and "without classes" in card
    assert "class-conditional" not in card and "classes, by" not in card


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", "metrics.json cannot be read"),
        ("training.json", "[1]", "training.json is no JSON object"),
        ("vae/config.json", '{"_class_name": "Evil"}', "holds neither a pipeline nor"),
        ("model_index.json", '{"id2label": {"a": "b"}}', "no model found at"),
        ("unet/config.json", '{"sample_size": "big"}', "no model found at"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        render_model_card(folder)
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_folder_is_not_followed(folder, pipeline, tmp_path):
    write_reports(folder, pipeline, pictures=PICTURES)
    (tmp_path / "secret").write_text("password")
    for name in ("config.yaml", "samples.png"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
    card = render_model_card(folder)
    assert "password" not in card and "samples.png)" not in card


def test_a_name_that_the_hub_does_not_allow_is_refused(folder):
    with pytest.raises(UserError, match="cannot be a model's name"):
        render_model_card(folder, 'a/b"); import os; ("')


@pytest.mark.parametrize(
    ("metrics", "how"),
    [
        (
            {"sampler": "UniPCMultistepScheduler", "guidance_interval": [0.2, 0.8]},
            "guidance 2 between the noise levels 0.2 and 0.8, 20 steps of UniPCMultistepScheduler",
        ),
        ({"sampler": "a [link](x)", "guidance_interval": ["a", 1]}, "guidance 2, 20 steps ("),
        ({"sampler": None, "guidance_interval": None}, "guidance 2, 20 steps ("),
        ({"sampling_dtype": "bfloat16"}, "(40 evaluations of the denoiser per image) in bfloat16"),
        ({"sampling_dtype": "a [link](x)"}, "(40 evaluations of the denoiser per image).\n"),
    ],
)
def test_how_the_measured_images_were_drawn(folder, pipeline, metrics, how):
    write_reports(folder, pipeline, metrics=metrics)
    card = render_model_card(folder, "ada/clothes", "mit")
    assert how in card
    names = [x.metric_name for x in huggingface_hub.ModelCard(card).data.eval_results]
    between = "between the noise levels 0.2 and 0.8"
    assert any(between in name for name in names) == (between in how)


@pytest.mark.parametrize(
    ("guidance", "text"),
    [
        (None, None),
        ({"guidance_scale": 1.5}, "guidance is 1.5."),
        ({"guidance_interval": (0, 0.8)}, "guidance is 2 between the noise levels 0 and 0.8."),
    ],
)
def test_guidance_of_the_models_own_is_on_its_card(folder, pipeline, guidance, text):
    pipeline.register_to_config(guidance=guidance)
    pipeline.save_pretrained(folder)
    card = render_model_card(folder, "ada/clothes", "mit")
    assert ("By default" in card) == (guidance is not None)
    assert text is None or f"By default, {text}\n" in card


def test_the_models_own_number_of_steps_is_on_its_card(folder, pipeline):
    assert "num_inference_steps=" not in render_model_card(folder, "ada/clothes", "mit")
    pipeline.register_to_config(num_inference_steps=12)
    pipeline.save_pretrained(folder)
    card = render_model_card(folder, "ada/clothes", "mit")
    assert card.count('image = pipe(class_labels=["cat"], num_inference_steps=12).images[0]') == 2
    assert "| UniPCMultistepScheduler, 12 steps, objective flow |" in card
    assert "distilled" not in card


def test_the_card_of_a_distilled_model_says_what_it_takes(tmp_path, distilled):
    distilled.save_pretrained(tmp_path)
    card = render_model_card(tmp_path, "ada/clothes", "mit")
    assert card.count("num_inference_steps=4).images[0]") == 2
    assert (
        "Main arguments: `class_labels`, `num_images`, `generator`.\nIt was distilled: it" in card
    )
    assert "it makes exactly 4 steps of its own sampler, without guidance." in card
    row = "DPMSolverMultistepScheduler, exactly 4 steps without guidance, objective flow |"
    assert row in card
    assert "guidance_scale" not in card and "By default" not in card
