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
KINDS = {"classes": "DiTPipeline", "unconditional": "LDMPipeline"}
CASES = [(objective, kind) for objective in CHANNELS for kind in KINDS]
LABELS, SCALE, STEPS, SEED = ["owl", "cat", "owl"], 3, 10, 5
# Runs without hf_latent and without remote code.
PLAIN_DIFFUSERS = """
import sys
sys.modules["hf_latent"] = None
from pathlib import Path
import numpy, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
root, steps, seed, scale, *labels = sys.argv[1:]
for folder in Path(root).iterdir():
    pipe = DiffusionPipeline.from_pretrained(folder)
    settings = {"num_inference_steps": int(steps)}
    settings["generator"] = torch.Generator().manual_seed(int(seed))
    if type(pipe).__name__ == "DiTPipeline":
        ids = pipe.get_label_ids(labels)
        images = pipe(ids, guidance_scale=float(scale), output_type="np", **settings).images
    else:
        assert type(pipe).__name__ == "LDMPipeline", type(pipe)
        images = pipe(len(labels), output_type="numpy", **settings).images
    numpy.save(folder / "images.npy", images)
"""


def make_model(objective: str, num_classes: int | None = 3, **changes) -> LatentDiffusionPipeline:
    vae = make_autoencoder(CHANNELS[objective], **changes)
    id2label = num_classes and {0: "cat", 1: "dog", 2: "owl"}
    unet = make_denoiser(vae, num_classes)
    model = LatentDiffusionPipeline(vae, unet, create_scheduler(objective), id2label)
    model.set_progress_bar_config(disable=True)
    return model


def draw(model: LatentDiffusionPipeline) -> np.ndarray:
    """Draw with the model, from the noise of the stock pipelines, guided at all noise levels."""
    conditional = model.num_classes is not None
    return model(
        class_labels=LABELS if conditional else None,
        num_images=len(LABELS),
        guidance_scale=SCALE if conditional else 1,
        num_inference_steps=STEPS,
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
        if objective == "flow":
            model.use_sampler("euler")  # whose timesteps are whole numbers at 10 steps
        path = tmp_path_factory.mktemp("model")
        model.save_pretrained(path)
        own[objective, kind] = draw(model)
        output = root / f"{objective}-{kind}"
        assert run("--model", path, "--output_dir", output) == 0
    arguments = [sys.executable, "-c", PLAIN_DIFFUSERS, root, STEPS, SEED, SCALE, *LABELS]
    process = forked.run(arguments, cwd=root.parent)
    assert process.returncode == 0, process.stderr[-2000:]
    return {case: (own[case], np.load(root / "-".join(case) / "images.npy")) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "kind"), CASES)
def test_plain_diffusers_draws_the_models_images(drawn, objective, kind):
    own, exported = drawn[objective, kind]
    assert exported.shape == own.shape == (len(LABELS), 16, 16, CHANNELS[objective])
    np.testing.assert_allclose(exported, own, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("objective", ["flow", "epsilon"])
def test_an_export_holds_safetensors_and_no_path(tmp_path, capsys, objective):
    make_model(objective).save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").glob("*/*config.json"):  # as plain diffusers saves them
        config = json.loads(path.read_text()) | {"_name_or_path": str(tmp_path / "elsewhere")}
        path.write_text(json.dumps(config))
    output = tmp_path / "runs" / "dit"
    assert run("--model", tmp_path / "model", "--output_dir", output) == 0
    assert capsys.readouterr().out == f"a model of 3 classes, as a stock DiTPipeline: {output}\n"
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    for name in files:
        assert str(tmp_path).encode() not in (output / name).read_bytes(), name
    assert [path.name for path in output.parent.iterdir()] == ["dit"]


def test_an_unconditional_model_is_exported_as_such(tmp_path, capsys):
    make_model("epsilon", None).save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    out = capsys.readouterr().out
    assert out == f"an unconditional model, as a stock LDMPipeline: {tmp_path / 'ldm'}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "ldm"), "--format ldm is not for a model with classes: use --format dit"),
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


def test_classes_need_a_model_with_classes(tmp_path, capsys):
    make_model("flow", None).save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--output_dir", tmp_path / "dit", "--format", "dit")
    assert run(*flags) == 2
    assert "--format dit is not for a model with no classes: use --format ldm" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "dit").exists()


def test_an_earlier_export_is_replaced_only_when_asked_and_other_files_stay(tmp_path, capsys):
    model = make_model("flow")
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        torch.nn.init.zeros_(model.unet.conv_out.bias)
    flags = ("--output_dir", tmp_path / "dit")
    assert run("--model", tmp_path / "first", *flags) == 0
    folder = tmp_path / "dit" / "transformer"
    weights = folder / "diffusion_pytorch_model.safetensors"
    first = weights.read_bytes()
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    (folder / "notes.json").write_text("mine")
    assert run("--model", tmp_path / "second", *flags) == 2
    assert "has files in it" in capsys.readouterr().err
    assert weights.read_bytes() == first
    assert run("--model", tmp_path / "second", *flags, "--overwrite_output_dir") == 0
    assert weights.read_bytes() != first
    assert not index.exists(), "diffusers would load it in place of the new weights"
    assert (folder / "notes.json").read_text() == "mine"


def test_an_export_is_no_model_of_this_package(tmp_path, capsys):
    make_model("flow").save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    assert run("--model", tmp_path / "ldm", "--output_dir", tmp_path / "again") == 2
    assert f"no model found at {tmp_path / 'ldm'}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "warning"), [("classes", "types for transformer"), ("unconditional", "for vqvae")]
)
def test_the_code_of_the_card_runs(tmp_path, kind, warning):
    make_model("flow", None if kind == "unconditional" else 3).save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "ldm" / "README.md").read_text(), re.S)
    code = 'import sys; sys.modules["hf_latent"] = None\n' + code.replace(
        "path/to/this/folder", "ldm"
    )
    process = forked.run([sys.executable, "-c", code], cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert Image.open(tmp_path / "sample.png").size == (16, 16)
    assert warning in process.stderr  # as the card says


def test_an_autoencoder_keeps_what_it_is(tmp_path):
    model = make_model("flow")
    model.save_pretrained(tmp_path / "model")
    assert run("--model", tmp_path / "model", "--output_dir", tmp_path / "ldm") == 0
    exported = AutoencoderKL.from_pretrained(tmp_path / "ldm" / "vae").state_dict()
    assert exported.keys() == model.vae.state_dict().keys()
    for name, weight in model.vae.state_dict().items():
        assert torch.equal(weight, exported[name]), name
