"""A model with prompts draws its images as a stock StableDiffusionPipeline, without hf_latent."""

import json
import re
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from hf_latent.errors import UserError
from hf_latent.hub.stock_pipeline import to_stock_pipeline
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.image_to_image import read_mask, shrink_mask
from hf_latent.pipeline.prompts import prompt_conditions
from tests import forked
from tests.autoencoder_kinds import make_kind
from tests.conftest import NARROW_DENOISER, make_autoencoder
from tests.hub.test_export import run
from tests.models.test_text_encoder import make_bert, make_tokenizer

TOLERANCE = 1e-4  # in [0, 1], as the command and the card say
CUT_TOLERANCE = 0.03  # of these models, if timesteps are truncated to whole numbers
PROMPTS, NEGATIVE = ["a red heart", "a blue cat"], ["a cat", ""]
SCALE, STEPS, SEED = 3.0, 8, 5
# Name: what the model is, and its sampler.
CASES = {
    "unipc": ({}, None),
    "euler": ({"channels": 3}, "euler"),
    "epsilon": ({"scheduler": create_scheduler("epsilon")}, None),
    "rgba": ({"channels": 4}, "euler"),
    "six": ({"channels": 6}, "euler"),
    "oblong": ({"size": (16, 32)}, "euler"),
    "classes": ({"num_classes": 3}, "euler"),
}
# Runs without hf_latent and without remote code.
PLAIN_DIFFUSERS = """
import sys
sys.modules["hf_latent"] = None
import json
from pathlib import Path
import numpy, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
root, seed, settings = sys.argv[1:]
for folder in Path(root).iterdir():
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    assert type(pipe).__name__ == "StableDiffusionPipeline", type(pipe)
    generator = torch.Generator().manual_seed(int(seed))
    images = pipe(**json.loads(settings), generator=generator, output_type="np").images
    numpy.save(folder / "images.npy", images)
"""


def make_words(
    channels=1, size=(16, 16), num_classes=None, vae=None, guided=False, **settings
) -> LatentDiffusionPipeline:
    """A model with prompts that draws clearly different images of them, and of its classes."""
    latent_channels = settings.pop("latent_channels", 4)
    vae = vae or make_autoencoder(channels, latent_channels=latent_channels)
    torch.manual_seed(0)
    shape = (channels, *size)
    unet = create_denoiser("tiny", vae, shape, num_classes, 16, **NARROW_DENOISER).eval()
    encoder, tokenizer = make_bert().eval(), make_tokenizer()
    tokenizer.model_max_length, encoder.config.use_attention_mask = 6, True
    with torch.no_grad():
        encoder.encoder.layer[-1].output.LayerNorm.weight *= 10
        if num_classes:
            unet.class_embedding.weight *= 20
    parts = {"scheduler": create_scheduler("flow"), "text_encoder": encoder, "tokenizer": tokenizer}
    parts["guide_unet"] = deepcopy(unet) if guided else None
    model = LatentDiffusionPipeline(vae, unet, **parts | settings)
    model.set_progress_bar_config(disable=True)
    return model


def make_case(name: str) -> LatentDiffusionPipeline:
    settings, sampler = CASES[name]
    model = make_words(**settings)
    if sampler:
        model.use_sampler(sampler)
    return model


def draw(pipeline, **changes) -> np.ndarray:
    """Draw with a model, or with its export, from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": SCALE}
    settings |= {"num_inference_steps": STEPS, "output_type": "np"} | changes
    return pipeline(**settings, generator=torch.Generator().manual_seed(SEED)).images


def assert_near(found, expected, tolerance=TOLERANCE) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict:
    """The images of each case: the model's own, and those of its export in plain diffusers."""
    root, own = tmp_path_factory.mktemp("exports"), {}
    for name in CASES:
        model = make_case(name)
        path = tmp_path_factory.mktemp("model")
        model.save_pretrained(path)
        own[name] = draw(model)
        loaded = LatentDiffusionPipeline.from_pretrained(path, scheduler=model.scheduler)
        to_stock_pipeline(loaded).save_pretrained(root / name)
    settings = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": SCALE}
    settings["num_inference_steps"] = STEPS
    arguments = [sys.executable, "-c", PLAIN_DIFFUSERS, root, SEED, json.dumps(settings)]
    process = forked.run(arguments, cwd=root.parent)
    assert process.returncode == 0, process.stderr[-2000:]
    return {name: (own[name], np.load(root / name / "images.npy")) for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_plain_diffusers_draws_the_models_images(exported, name):
    own, found = exported[name]
    height, width = CASES[name][0].get("size", (16, 16))
    assert found.shape == (2, height, width, CASES[name][0].get("channels", 1))
    assert_near(found, own, CUT_TOLERANCE if name == "unipc" else TOLERANCE)


@pytest.mark.parametrize("name", ["euler", "epsilon", "classes"])
def test_each_prompt_and_negative_prompt_draws_its_own_images(name):
    model = make_case(name)
    stock = to_stock_pipeline(model)
    for change in (
        {"prompt": PROMPTS[::-1]},
        {"negative_prompt": ["a red cat", "a heart"]},
        {"negative_prompt": None},
        {"guidance_scale": 1.0},
    ):
        assert abs(draw(stock, **change) - draw(stock)).max() > 100 * TOLERANCE
        assert_near(draw(stock, **change), draw(model, **change))


def test_prompts_are_padded_and_cut_alike():
    model = make_case("euler")
    stock = to_stock_pipeline(model)
    for prompt in ("", "cat", "a red heart and a blue cat and a red cat"):
        settings = {"prompt": prompt, "negative_prompt": "a"}
        assert_near(draw(stock, **settings), draw(model, **settings))


def test_heun_of_a_flow_becomes_euler():
    model = make_words()
    model.use_sampler("heun")
    stock = to_stock_pipeline(model)
    model.use_sampler("euler")
    assert_near(draw(stock), draw(model))


def test_a_distilled_model_is_drawn_without_guidance():
    scheduler = to_stock_pipeline(make_case("euler")).scheduler
    model = make_words(scheduler=scheduler, num_inference_steps=4, distilled=True)
    settings = {"guidance_scale": 1.0, "num_inference_steps": 4, "negative_prompt": None}
    stock = to_stock_pipeline(model)
    assert_near(draw(stock, **settings), draw(model, **settings), CUT_TOLERANCE)


def test_a_guide_is_left_out():
    model = make_words(guided=True)
    model.use_sampler("euler")
    stock = to_stock_pipeline(model)
    model.guide_unet = None
    assert_near(draw(stock), draw(model))


def test_the_model_is_not_changed():
    model = make_case("classes")
    state = {x: v.clone() for x, v in model.unet.state_dict().items()}
    configs = [dict(x.config) for x in (model.unet, model.vae, model.scheduler)]
    to_stock_pipeline(model)
    assert [dict(x.config) for x in (model.unet, model.vae, model.scheduler)] == configs
    assert model.unet.state_dict().keys() == state.keys()
    for name, weight in model.unet.state_dict().items():
        assert torch.equal(weight, state[name]), name


@pytest.fixture
def picture() -> Image.Image:
    pixels = torch.rand(16, 16, generator=torch.Generator().manual_seed(1))
    return Image.fromarray((pixels * 255).byte().numpy())


def encode(model, picture) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of a picture, and noise, as stock pipelines draw them."""
    generator = torch.Generator().manual_seed(SEED)
    pixels = model.image_processor.preprocess(picture)
    with torch.no_grad():
        latents = model.vae.encode(pixels).latent_dist.sample(generator)
    return latents, randn_tensor(latents.shape, generator)


@pytest.mark.parametrize(("name", "tolerance"), [("epsilon", TOLERANCE), ("unipc", CUT_TOLERANCE)])
def test_an_export_is_a_model_for_image_to_image(name, tolerance, picture, tmp_path):
    model = make_case(name)
    to_stock_pipeline(model).save_pretrained(tmp_path)
    stock = AutoPipelineForImage2Image.from_pretrained(tmp_path)
    settings = {"prompt": "a red heart", "negative_prompt": "a cat", "strength": 0.5}
    latents, noise = encode(model, picture)
    expected = draw(model, **settings, image_latents=latents, latents=noise)
    assert_near(draw(stock, **settings, image=picture), expected, tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [("epsilon", TOLERANCE), ("unipc", CUT_TOLERANCE)])
def test_an_export_is_a_model_for_inpainting(name, tolerance, picture, tmp_path):
    model = make_case(name)
    to_stock_pipeline(model).save_pretrained(tmp_path)
    stock = AutoPipelineForInpainting.from_pretrained(tmp_path)
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    settings = {"prompt": "a red heart", "negative_prompt": None, "strength": 0.5}
    found = draw(stock, **settings, image=picture, mask_image=mask, output_type="latent")
    latents, noise = encode(model, picture)
    expected = model.denoise_latents(
        noise,
        STEPS,
        guidance_scale=SCALE,
        image_latents=latents,
        strength=0.5,
        mask=shrink_mask(read_mask(mask, 16, 16), 4),
        conditions=prompt_conditions(model, ["a red heart"], 1),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=20 * tolerance)
    assert torch.equal(found[..., :2], latents[..., :2])
    assert (found[..., 2:] - latents[..., 2:]).abs().mean() > 0.5


def test_an_export_holds_no_path_and_loads_without_warnings(tmp_path, capfd, recwarn):
    make_words(num_classes=3).save_pretrained(tmp_path / "model")
    other = str(tmp_path / "elsewhere")
    for path in (tmp_path / "model").glob("*/*config.json"):  # as other programs save them
        key = "name_or_path" if path.parent.name == "tokenizer" else "_name_or_path"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: other}))
    output = tmp_path / "runs" / "stable"
    assert run("--model", tmp_path / "model", "--output_dir", output) == 0
    said = capfd.readouterr()
    assert said.out == (
        "a model with prompts, but without its 3 classes, as a stock StableDiffusionPipeline: "
        f"{output}\n"
    )
    assert "torchvision" not in said.err and "Warning" not in said.err
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    for name in files:
        assert str(tmp_path).encode() not in (output / name).read_bytes(), name
    unet = UNet2DConditionModel.from_pretrained(output / "unet")
    assert unet.config.num_class_embeds is None and unet.class_embedding is None
    StableDiffusionPipeline.from_pretrained(output)
    assert not [x for x in recwarn if x.category is FutureWarning]  # of its settings


def test_an_earlier_export_is_replaced(pipeline, tmp_path):
    make_words().save_pretrained(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "classes")
    output = ("--output_dir", tmp_path / "out", "--overwrite_output_dir")
    for name in ("words", "classes"):
        assert run("--model", tmp_path / name, *output) == 0
    parts = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert parts == {"scheduler", "transformer", "vae"}


@pytest.mark.slow
def test_the_code_of_the_card_runs(tmp_path):
    make_words(channels=3).save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "stable") == 0
    card = (tmp_path / "stable" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    code = code.replace("path/to/this/folder", "stable")
    code = f'import sys; sys.modules["hf_latent"] = None\n{code}'
    process = forked.run([sys.executable, "-c", code], cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert Image.open(tmp_path / "sample.png").size == (16, 16)
    assert "types for text_encoder" in process.stderr  # as the card says


@pytest.mark.parametrize("asked", ["dit", "ldm", "page"])
def test_prompts_have_one_format(tmp_path, capsys, asked):
    make_words(num_classes=3).save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--output_dir", tmp_path / "out", "--format", asked)
    assert run(*flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --format {asked} ")
    assert error.endswith("a model with prompts: use --format stable-diffusion")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fixture", "own"), [("pipeline", "dit"), ("unconditional", "ldm")])
def test_a_model_without_prompts_is_refused(request, tmp_path, capsys, fixture, own):
    request.getfixturevalue(fixture).save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    assert run(*flags, "--format", "stable-diffusion") == 2
    assert capsys.readouterr().err == (
        f"error: --format stable-diffusion is not for a model with no prompts: use --format {own}\n"
    )


def test_images_that_are_no_multiples_of_8_are_refused():
    vae = make_autoencoder(1, block_out_channels=(8, 8))
    with pytest.raises(UserError, match="images are 20x20, and StableDiffusionPipeline draws mul"):
        to_stock_pipeline(make_words(vae=vae, size=(20, 20)))
    model = make_words(vae=vae, size=(24, 24))
    model.use_sampler("euler")
    assert_near(draw(to_stock_pipeline(model)), draw(model))


@pytest.mark.parametrize("kind", ["stable-diffusion", "sd3", "asymmetric", "tiny"])
def test_autoencoders_of_others_are_exported(kind):
    vae = make_kind(kind)
    if kind == "tiny":
        vae.register_to_config(shift_factor=None)
    model = make_words(vae=vae, channels=3)
    model.use_sampler("euler")
    assert_near(draw(to_stock_pipeline(model)), draw(model))


@pytest.mark.parametrize("kind", ["vq", "dc", "hunyuan"])
def test_autoencoders_that_it_cannot_decode_with_are_refused(kind):
    with pytest.raises(UserError, match="cannot decode with an autoencoder of the class"):
        to_stock_pipeline(make_words(vae=make_kind(kind), channels=3, size=(64, 64)))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"clip_sample": True, "timestep_spacing": "trailing"}, "clip_sample=True"),
        ({"clip_sample": False}, "steps_offset=0"),
    ],
)
def test_settings_that_it_changes_are_refused(config, says):
    model = make_words(scheduler=DDIMScheduler(**config))
    with pytest.raises(UserError, match=f"{says}, which StableDiffusionPipeline changes: save the"):
        to_stock_pipeline(model)
    model = make_words(scheduler=DDIMScheduler(clip_sample=False, steps_offset=1))
    assert_near(draw(to_stock_pipeline(model)), draw(model))


def test_a_model_without_its_text_encoder_is_refused():
    with pytest.raises(UserError, match="saved without its text encoder, which StableDiff"):
        to_stock_pipeline(make_words(text_encoder=None))
