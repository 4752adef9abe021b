"""An export, loaded by plain diffusers, draws the images of the model."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from hf_latent.cli import main
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests import forked
from tests.conftest import make_autoencoder, make_denoiser

TOLERANCE = 1e-4  # in [0, 1], as the command, the card and the README say
CHANNELS = {"flow": 3, "epsilon": 1, "v_prediction": 3, "sample": 1}
LABELS = {"number": "1", "name": "owl", "null": None, "unconditional": None}
CASES = [(objective, kind) for objective in CHANNELS for kind in LABELS]
STEPS, BATCH, SEED = 10, 3, 5
# Runs without hf_latent and without remote code.
PLAIN_DIFFUSERS = """
import sys
sys.modules["hf_latent"] = None
from pathlib import Path
import numpy, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
root, steps, batch, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
for folder in root.iterdir():
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe).__name__ == "LDMPipeline", type(pipe)
    generator = torch.Generator().manual_seed(seed)
    images = pipe(batch, generator, num_inference_steps=steps, output_type="numpy").images
    numpy.save(folder / "images.npy", images)
"""


def make_model(objective: str, num_classes: int | None = 3, **changes) -> LatentDiffusionPipeline:
    vae = make_autoencoder(CHANNELS[objective], **changes)
    id2label = num_classes and {0: "cat", 1: "dog", 2: "owl"}
    unet = make_denoiser(vae, num_classes)
    model = LatentDiffusionPipeline(vae, unet, create_scheduler(objective), id2label)
    model.set_progress_bar_config(disable=True)
    return model


def draw(model: LatentDiffusionPipeline, label: str | None, steps: int = STEPS) -> np.ndarray:
    """Draw with the model, from the noise of LDMPipeline, at guidance 1."""
    return model(
        class_labels=label,
        num_images=BATCH,
        guidance_scale=1,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    ).images


def run(*flags) -> int:
    """Run `hf-latent export`; return its exit status."""
    try:
        main(["export", *map(str, flags)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict:
    """The images of each case: the model's own, and those of its export in plain diffusers."""
    root = tmp_path_factory.mktemp("exports")
    own = {}
    for objective, kind in CASES:
        model = make_model(objective, None if kind == "unconditional" else 3)
        path = tmp_path_factory.mktemp("model")
        model.save_pretrained(path)
        if objective == "flow":
            model.use_sampler("euler")  # as the export does
        own[objective, kind] = draw(model, LABELS[kind])
        flags = ("--class_label", LABELS[kind]) if LABELS[kind] else ()
        output = root / f"{objective}-{kind}"
        assert run("--model", path, "--format", "ldm", "--output_dir", output, *flags) == 0
    arguments = [sys.executable, "-c", PLAIN_DIFFUSERS, root, STEPS, BATCH, SEED]
    process = forked.run(arguments, cwd=root.parent)
    assert process.returncode == 0, process.stderr[-2000:]
    return {case: (own[case], np.load(root / "-".join(case) / "images.npy")) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_plain_diffusers_draws_the_models_images(drawn, objective, kind):
    own, exported = drawn[objective, kind]
    assert exported.shape == own.shape == (BATCH, 16, 16, CHANNELS[objective])
    np.testing.assert_allclose(exported, own, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("objective", CHANNELS)
def test_exports_of_two_classes_differ_by_far_more(drawn, objective):
    one, other, none = (drawn[objective, kind][1] for kind in ("number", "name", "null"))
    for first, second in ((one, other), (one, none), (other, none)):
        assert abs(first - second).max() > 100 * TOLERANCE


@pytest.mark.parametrize("objective", ["flow", "epsilon"])
def test_an_export_holds_safetensors_and_no_path(tmp_path, capsys, objective):
    make_model(objective).save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").glob("*/*config.json"):  # as plain diffusers saves them
        config = json.loads(path.read_text()) | {"_name_or_path": str(tmp_path / "elsewhere")}
        path.write_text(json.dumps(config))
    output = tmp_path / "runs" / "ldm"
    assert run("--model", tmp_path / "model", "--output_dir", output, "--class_label", "owl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"class 2 (owl), as a stock LDMPipeline: {output}",
        "the export has no guidance: its images are those of guidance_scale 1",
    ]
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    }
    for name in files:
        assert str(tmp_path).encode() not in (output / name).read_bytes(), name
    assert json.loads((output / "unet" / "config.json").read_text())["num_class_embeds"] is None
    assert [path.name for path in output.parent.iterdir()] == ["ldm"]


def test_without_a_class_the_output_says_that_it_is_the_null_label(tmp_path, capsys):
    make_model("epsilon").save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    assert capsys.readouterr().out.startswith("no class (the null label of 3 classes), as a ")


def test_an_unconditional_export_says_nothing_of_guidance(tmp_path, capsys):
    make_model("epsilon", None).save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    out = capsys.readouterr().out
    assert out == f"an unconditional model, as a stock LDMPipeline: {tmp_path / 'ldm'}\n"


def test_a_class_name_wins_over_a_label(tmp_path, capsys):
    model = make_model("epsilon")
    model.register_to_config(id2label={0: "2", 1: "0", 2: "1"})
    model.save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm", "--class_label", 2)
    assert run(*flags) == 0
    assert capsys.readouterr().out.startswith("class 0 (2), ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--class_label", "3"), "--class_label: class label 3 is not in the model: use a number"),
        (("--class_label", "-1"), "--class_label: class label -1 is not in the model"),
        (("--class_label", "cow"), "or one of cat, dog, owl"),
        (("--format", "onnx"), "--format"),
        (("--model", "/nowhere/model"), "no model found at /nowhere/model"),
        (("--model", "model/vae"), "no model found at model/vae"),
        (("--output_dir", "model"), "--output_dir model holds --model model"),
        (
            ("--output_dir", "model", "--overwrite_output_dir"),
            "--output_dir model holds --model model, which is read: choose another",
        ),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, flags, message):
    make_model("flow").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run("--model", "model", "--output_dir", "ldm", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_of_an_unconditional_model_is_refused(tmp_path, capsys):
    make_model("flow", None).save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm", "--class_label", 0)
    assert run(*flags) == 2
    assert "error: --class_label: this model has no classes" in capsys.readouterr().err
    assert not (tmp_path / "ldm").exists()


def test_an_earlier_export_is_replaced_only_when_asked_and_other_files_stay(tmp_path, capsys):
    make_model("flow").save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm")
    assert run(*flags, "--class_label", 0) == 0
    weights = tmp_path / "ldm" / "unet" / "diffusion_pytorch_model.safetensors"
    first = weights.read_bytes()
    index = tmp_path / "ldm" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    (tmp_path / "ldm" / "unet" / "notes.json").write_text("mine")
    assert run(*flags, "--class_label", 1) == 2
    assert "has files in it" in capsys.readouterr().err
    assert weights.read_bytes() == first
    assert run(*flags, "--class_label", 1, "--overwrite_output_dir") == 0
    assert weights.read_bytes() != first
    assert not index.exists(), "diffusers would load it in place of the new weights"
    assert (tmp_path / "ldm" / "unet" / "notes.json").read_text() == "mine"


def test_an_export_is_no_model_of_this_package(tmp_path, capsys):
    make_model("flow").save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    assert run("--model", tmp_path / "ldm", "--output_dir", tmp_path / "again") == 2
    assert f"no model found at {tmp_path / 'ldm'}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_code_of_the_card_runs(tmp_path):
    make_model("flow").save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "ldm" / "README.md").read_text(), re.S)
    code = 'import sys; sys.modules["hf_latent"] = None\n' + code.replace(
        "path/to/this/folder", "ldm"
    )
    process = forked.run([sys.executable, "-c", code], cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert Image.open(tmp_path / "sample.png").size == (16, 16)
    assert "Expected types for vqvae" in process.stderr  # as the card says


def test_an_autoencoder_keeps_what_it_is(tmp_path):
    model = make_model("flow")
    model.save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    exported = AutoencoderKL.from_pretrained(tmp_path / "ldm" / "vqvae").state_dict()
    assert exported.keys() == model.vae.state_dict().keys()
    for name, weight in model.vae.state_dict().items():
        assert torch.equal(weight, exported[name]), name
