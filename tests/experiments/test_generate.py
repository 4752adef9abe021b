from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from hf_latent.cli import main
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.evaluation.pictures import LABEL_WIDTH, MOST_LABEL_WIDTH
from hf_latent.experiments import generate as module
from hf_latent.experiments.generate import GenerateConfig, choose_labels
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import IMAGE_VALUES
from tests.conftest import count_calls, make_autoencoder, make_denoiser
from tests.pipeline.test_prompts import make_words
from tests.small import NARROW_DENOISER


@pytest.fixture
def model(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def model_of(tmp_path):
    """Save a model of a scheduler and a number of channels."""

    def save(scheduler, channels=1):
        vae = make_autoencoder(channels)
        made = LatentDiffusionPipeline(vae, make_denoiser(vae), scheduler)
        made.save_pretrained(tmp_path / "another")
        return str(tmp_path / "another")

    return save


@pytest.fixture
def words(tmp_path):
    """The folder of a model that was trained on captions, beside which prompts may be written."""
    make_words().save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def tiles(path: Path, left: int = 0) -> np.ndarray:
    """Return a picture's tiles `(rows, columns, 64, 64)`, right of labels `left` pixels wide."""
    pixels = np.asarray(Image.open(path).convert("L"))[:, left:].astype(int)
    return pixels.reshape(-1, 64, pixels.shape[1] // 64, 64).swapaxes(1, 2)


def drawn(prompt: str, seed: int, **arguments) -> np.ndarray:
    """Return the tile of an image of the model `words`."""
    generator, pipeline = torch.Generator().manual_seed(seed), make_words()
    asked = {"prompt": prompt, "generator": generator, "num_inference_steps": 2} | arguments
    return np.asarray(pipeline(**asked).images[0].resize((64, 64), 0)).astype(int)


def run(model: str, *flags: str) -> int:
    """Run `hf-latent generate`; return its exit status."""
    try:
        main(["generate", "--model", model, "--num_inference_steps", "2", *flags])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_one_row_a_label(model, tmp_path, capsys):
    output = tmp_path / "grid.png"
    flags = ("--class_labels", "0,owl", "--num_images", "6", "--seed", "7")
    assert run(model, *flags, "--output", str(output)) == 0
    assert "6 images" in capsys.readouterr().out
    picture = Image.open(output)
    assert picture.size == (LABEL_WIDTH + 3 * 64, 2 * 64)
    again = tmp_path / "again.png"
    assert run(model, *flags, "--output", str(again), "--batch_size", "4") == 0
    difference = np.asarray(picture).astype(int) - np.asarray(Image.open(again)).astype(int)
    assert abs(difference).max() <= 1
    other = tmp_path / "other.png"
    assert run(model, *flags[:-1], "8", "--output", str(other)) == 0
    assert np.asarray(Image.open(other)).tobytes() != np.asarray(picture).tobytes()


def test_dtype(model, tmp_path, capsys):
    pictures = []
    for dtype in ("float32", "bfloat16"):
        output = tmp_path / f"{dtype}.png"
        assert run(model, "--num_images", "3", "--output", str(output), "--dtype", dtype) == 0
        pictures.append(np.asarray(Image.open(output)).astype(int))
    assert 0 < abs(pictures[0] - pictures[1]).max() < 13


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "prompts"])
def test_a_compiled_denoiser_has_a_graph_with_guidance_and_one_without(
    vae, tmp_path, compiled_eagerly, kind
):
    # Of one level: torch._dynamo takes a second for each block.
    small = NARROW_DENOISER | {"block_out_channels": (16,), "attention": (True,)}
    if kind == "classes":
        unet = create_denoiser("tiny", vae, (1, 16, 16), 3, **small)
        saved = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"))
    else:
        unet = create_denoiser("tiny", vae, (1, 16, 16), text_width=16, **small)
        saved = LatentDiffusionPipeline(**make_words().components | {"unet": unet})
    saved.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat\na red heart\nheart\n")
    pictures = []
    for compiled in ("false", "true"):
        output = tmp_path / f"{compiled}.png"
        flags = ("--num_images", "5", "--batch_size", "2", "--guidance_interval", "0,0.8")
        flags += ("--compile", compiled, "--output", str(output))
        if kind == "prompts":
            flags += ("--prompts_file", str(tmp_path / "prompts.txt"))
        assert run(str(tmp_path / "model"), *flags) == 0
        pictures.append(np.asarray(Image.open(output)).astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1
    assert compiled_eagerly == [type(unet).__name__]
    assert counters["stats"]["unique_graphs"] == 2, "the last batch is filled up"
    assert not counters["graph_break"]


def test_all_classes_are_drawn_by_default(model, tmp_path):
    assert run(model, "--output", str(tmp_path / "grid.png")) == 0
    assert Image.open(tmp_path / "grid.png").size == (LABEL_WIDTH + 4 * 64, 3 * 64)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cats, big", [0]),
        ('a, b, "c"', [2]),
        ('"cats, big",dogs', [0, 1]),
        ('dogs, "cats, big" ,1', [1, 0, 1]),
        ('"a, b, ""c""",dogs', [2, 1]),
        (1, [1]),
        ("0,2", [0, 2]),
    ],
)
def test_names_with_commas_are_one_name_or_quoted(vae, text, labels):
    names = {0: "cats, big", 1: "dogs", 2: 'a, b, "c"'}
    unet, scheduler = make_denoiser(vae), create_scheduler("flow")
    pipeline = LatentDiffusionPipeline(vae, unet, scheduler, id2label=names)
    assert choose_labels(GenerateConfig(class_labels=text).class_labels, pipeline) == labels


@pytest.mark.parametrize("text", ["cats, big", "", '"', 'dogs,"', "dogs\rdogs", ",", "dogs,,dogs"])
def test_names_that_are_unknown_or_badly_quoted_are_one_line(pipeline, text):
    with pytest.raises(UserError, match=r"--class_labels: class label .* is not in the model"):
        choose_labels(text, pipeline)


def test_the_folder_of_a_run_stands_for_its_model(model, tmp_path):
    pictures = []
    for name in (model, str(Path(model).parent)):
        pictures.append(tmp_path / f"{len(pictures)}.png")
        assert run(name, "--num_images", "2", "--output", str(pictures[-1])) == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_sampler_and_guidance_interval_reach_the_pipeline(model, tmp_path, monkeypatch):
    calls = []
    sample = LatentDiffusionPipeline.denoise_latents

    def recorded(pipeline, *args, **settings):
        guidance = settings["guidance_scale"], settings["guidance_interval"]
        calls.append((type(pipeline.scheduler).__name__, *guidance))
        return sample(pipeline, *args, **settings)

    monkeypatch.setattr(LatentDiffusionPipeline, "denoise_latents", recorded)
    flags = ("--sampler", "heun", "--guidance_scale", "3", "--guidance_interval", "0.2,0.8")
    assert run(model, *flags, "--output", str(tmp_path / "grid.png")) == 0
    assert calls == [("FlowMatchHeunDiscreteScheduler", 3.0, (0.2, 0.8))]


def test_the_released_model_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["generate", "--num_inference_steps", "1"])
    assert Image.open("samples.png").size == (LABEL_WIDTH + 4 * 64, 10 * 64)
    again = ("--model", "fashion-mnist", "--output", "b.png")
    main(["generate", "--num_inference_steps", "1", *again])
    assert Path("b.png").read_bytes() == Path("samples.png").read_bytes()


def test_an_unconditional_model_is_drawn_without_labels(unconditional, tmp_path):
    unconditional.save_pretrained(tmp_path / "model")
    output = tmp_path / "grid.png"
    assert run(str(tmp_path / "model"), "--num_images", "5", "--output", str(output)) == 0
    assert Image.open(output).size == (8 * 64, 64)


def test_a_prompt_is_drawn_in_a_plain_grid(words, tmp_path):
    prompted, alone, away = (tmp_path / f"{x}.png" for x in ("prompted", "alone", "away"))
    flags = ("--prompt", "a  red heart", "--seed", "7")
    assert run(words, *flags, "--output", str(prompted)) == 0
    found = tiles(prompted)
    assert found.shape[:2] == (1, 8)
    for i in (0, 5):
        assert abs(found[0, i] - drawn("a red heart", 7 + i)).max() <= 1
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf\r\n a red heart \r\n\n")
    in_file = ("--prompts_file", str(tmp_path / "prompts.txt"), *flags[2:])
    assert run(words, *in_file, "--output", str(alone)) == 0
    assert alone.read_bytes() == prompted.read_bytes()
    negative = ("--negative_prompt", "cat", "--num_images", "2", "--guidance_scale", "4")
    assert run(words, *flags, *negative, "--output", str(away)) == 0
    expected = drawn("a red heart", 8, negative_prompt="cat", guidance_scale=4.0)
    assert abs(tiles(away)[0, 1] - expected).max() <= 1
    assert abs(tiles(away)[0, 1] - found[0, 1]).max() > 1


def test_each_prompt_of_a_file_has_a_labelled_row(words, tmp_path, capsys):
    prompts = ["a cat", "a red heart and a blue heart and a blue cat and a red cat " * 3, "heart"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts))
    flags, output = ("--prompts_file", str(tmp_path / "prompts.txt")), tmp_path / "grid.png"
    assert run(words, *flags, "--batch_size", "5", "--output", str(output)) == 0
    printed = capsys.readouterr()
    assert "12 images" in printed.out
    assert printed.err == (
        "warning: 1 of 3 texts are cut to 6 tokens, such as "
        "'a red heart and a blue heart and a blue cat and a red cat a '\n"
    )
    left = Image.open(output).width - 4 * 64
    assert MOST_LABEL_WIDTH - 24 < left <= MOST_LABEL_WIDTH
    found = tiles(output, left)
    assert found.shape[:2] == (3, 4)
    for row, column in ((0, 0), (1, 2), (2, 3)):
        expected = drawn(prompts[row], 3 * column + row)
        assert abs(found[row, column] - expected).max() <= 1
    assert run(words, *flags, "--num_images", "2", "--output", str(output)) == 0
    assert Image.open(output).height == 2 * 64


def test_without_a_prompt_the_empty_one_is_drawn_without_guidance(words, tmp_path, monkeypatch):
    calls = []

    def load(*arguments):
        pipeline = load_pipeline(*arguments)
        calls.append(count_calls(pipeline.unet))
        return pipeline

    monkeypatch.setattr(module, "load_pipeline", load)
    output = tmp_path / "grid.png"
    assert run(words, "--output", str(output)) == 0
    assert calls == [[8, 8]]
    assert abs(tiles(output)[0, 3] - drawn("", 3)).max() <= 1
    assert run(words, "--prompt", "cat", "--output", str(output)) == 0
    assert calls[1:] == [[16, 16]]


def test_a_prompt_needs_no_class(words, tmp_path):
    parts = make_words().components
    shape = {"num_classes": 3, "text_width": 16}
    unet = create_denoiser("tiny", parts["vae"], (1, 16, 16), **shape, **NARROW_DENOISER).eval()
    both = LatentDiffusionPipeline(**parts | {"unet": unet})
    both.save_pretrained(tmp_path / "both")
    both.set_progress_bar_config(disable=True)
    output = tmp_path / "grid.png"
    for flags, labels, size in (
        (("--prompt", "cat"), None, (8 * 64, 64)),
        (("--prompt", "cat", "--class_labels", "2,0"), [2], (LABEL_WIDTH + 4 * 64, 2 * 64)),
    ):
        assert run(str(tmp_path / "both"), *flags, "--output", str(output)) == 0
        assert Image.open(output).size == size
        asked = {"prompt": "cat", "num_inference_steps": 2, "class_labels": labels}
        image = both(generator=torch.Generator().manual_seed(0), **asked).images[0]
        expected = np.asarray(image.resize((64, 64), 0)).astype(int)
        assert abs(tiles(output, size[0] % 128)[0, 0] - expected).max() <= 1
    assert run(str(tmp_path / "both"), "--output", str(output)) == 0
    assert Image.open(output).size == (LABEL_WIDTH + 4 * 64, 3 * 64), "all classes"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--class_labels", "0"), "--class_labels: this model has no classes"),
        (("--guidance_scale", "3"), "--guidance_scale needs a prompt or a guide, and there is"),
        (("--negative_prompt", "cat", "--guidance_scale", "1"), "--negative_prompt needs class"),
        (("--prompt", "cat", "--prompts_file", "x"), "--prompt and --prompts_file cannot go"),
        (("--prompts_file", "nowhere.txt"), "--prompts_file nowhere.txt cannot be read as text"),
    ],
)
def test_bad_prompts_are_one_line(words, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(words, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--class_labels", "3"), "class label 3 is not in the model: use a number from 0 to 2"),
        (("--class_labels", "-1"), "class label -1"),
        (("--class_labels", "cow"), "class label cow"),
        (("--num_images", "0"), "--num_images must be a whole number above 0"),
        (("--num_inference_steps", "0"), "--num_inference_steps must be a whole number above 0"),
        (("--output", "nowhere/grid.png"), "choose a folder that exists"),
        (("--output", "grid.txt"), "must end in .png"),
        (("--model", "/nowhere/model"), "no model found at /nowhere/model"),
        (("--colour", "red"), "--colour"),
        (("--sampler", "ddim"), "--sampler ddim is not for this model: sampler ddim does not go"),
        (("--sampler", "plms"), "--sampler"),
        (("--guidance_scale", "-1"), "--guidance_scale must be a number at least 0"),
        (("--guidance_interval=-0.2,0.8",), "--guidance_interval -0.2,0.8 must be two noise"),
        (("--guidance_interval", "0.8,0.2"), "the lower one first"),
        (("--guidance_interval", "0.2"), "with a comma between"),
        (("--guidance_interval", "0.2,0.8,1"), "with a comma between"),
        (("--guidance_interval", "low,high"), "with a comma between"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(
    model, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(model, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_of_an_unconditional_model_are_refused(unconditional, tmp_path, capsys):
    unconditional.save_pretrained(tmp_path / "model")
    assert run(str(tmp_path / "model"), "--class_labels", "0") == 2
    assert "no classes" in capsys.readouterr().err
    assert run(str(tmp_path / "model"), "--guidance_scale", "2") == 2
    assert "--guidance_scale needs class_labels or a guide" in capsys.readouterr().err
    assert run(str(tmp_path / "model"), "--guidance_interval", "0.2,0.8") == 2
    assert "--guidance_interval needs class_labels or a guide" in capsys.readouterr().err


def test_a_distilled_model_draws_in_its_own_steps_and_refuses_others(distilled, tmp_path, capsys):
    distilled.save_pretrained(tmp_path / "model")
    model, picture = str(tmp_path / "model"), str(tmp_path / "grid.png")
    own = ("--output", picture, "--num_images", "3", "--num_inference_steps", "null")
    assert run(model, *own) == 0
    images = distilled([0, 1, 2], generator=[torch.Generator().manual_seed(i) for i in range(3)])
    shown = np.asarray(Image.open(picture).convert("L"))[: 3 * 64, LABEL_WIDTH : LABEL_WIDTH + 64]
    expected = np.concatenate([np.asarray(x.resize((64, 64), 0)) for x in images.images])
    np.testing.assert_array_equal(shown, expected)
    for flags, message in (
        (("--num_inference_steps", "20"), "--num_inference_steps does not fit: this model was"),
        (("--guidance_scale", "2"), "--guidance_scale does not fit: this model was distilled"),
        (("--sampler", "euler"), "--sampler euler is not for this model: a distilled model has"),
    ):
        assert run(model, *own, *flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")


def test_an_impossible_number_of_steps_is_one_line(model_of, tmp_path, capsys):
    model = model_of(create_scheduler("epsilon"))
    for steps in ("2000", "30"):
        flags = ("--num_inference_steps", steps, "--output", str(tmp_path / "grid.png"))
        assert run(model, *flags) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: --num_inference_steps {steps} is not for this scheduler: ")


def test_a_model_of_two_channels_shows_the_second_as_green_and_blue(model_of, tmp_path):
    model = model_of(create_scheduler("flow"), channels=2)
    assert run(model, "--output", str(tmp_path / "grid.png"), "--num_images", "3") == 0
    red, green, blue = np.moveaxis(np.asarray(Image.open(tmp_path / "grid.png")), 2, 0)
    # The three rows begin with a label.
    assert np.array_equal(green[:, LABEL_WIDTH:], blue[:, LABEL_WIDTH:])
    assert not np.array_equal(red[:, LABEL_WIDTH:], green[:, LABEL_WIDTH:])


def test_values_of_a_type_that_ome_tiff_has_not_are_one_line(pipeline, tmp_path, capsys):
    values = {"range": [[0, 900]], "dtype": "int64", "shown": None}
    pipeline.vae.register_to_config(**{IMAGE_VALUES: values})
    pipeline.save_pretrained(tmp_path / "model")
    output = tmp_path / "x.ome.tif"
    assert run(str(tmp_path / "model"), "--output", str(output)) == 2
    assert (
        f"--output {output}: OME-TIFF has no values of int64: use .npy" in capsys.readouterr().err
    )
    assert run(str(tmp_path / "model"), "--output", str(tmp_path / "x.npy")) == 0
    assert np.load(tmp_path / "x.npy").dtype == np.int64
