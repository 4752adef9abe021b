"""A saved model in an environment that has diffusers, and no hf_latent."""

import json
import os
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.hub_format import MODULES

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
DRAWING = """
import sys, json
import numpy as np, torch
from importlib.util import find_spec
from diffusers import DiffusionPipeline

assert find_spec("hf_latent") is None and find_spec("datasets") is None
torch.set_num_threads(1)
name, out, again, labels, *options = json.loads(sys.argv[1])
pipe = DiffusionPipeline.from_pretrained(
    name, trust_remote_code=True, use_safetensors=True, **dict(options)
)
assert type(pipe).__module__.startswith("diffusers_modules"), type(pipe)
arguments = {"num_images": 3} if labels is None else {"class_labels": labels}
generator = torch.Generator().manual_seed(0)
images = pipe(**arguments, generator=generator, num_inference_steps=3, output_type="np").images
np.save(out, images)
pipe.save_pretrained(again)
"""


@pytest.fixture(scope="session")
def plain_python(tmp_path_factory) -> Path:
    """An environment with torch, diffusers, transformers, accelerate and safetensors only."""
    folder = tmp_path_factory.mktemp("plain") / "venv"
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for found in with_dependencies(PACKAGES):
        for name in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site_packages / name).exists():  # some packages share a folder
                (site_packages / name).symlink_to(found.locate_file(name))
    return folder / "bin" / "python"


def with_dependencies(packages) -> list[Distribution]:
    """Return installed packages and all their dependencies."""
    found, waiting = {}, list(packages)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found[name] = distribution(name)
            needed = map(Requirement, found[name].requires or [])
            waiting += [x.name for x in needed if not x.marker or x.marker.evaluate({"extra": ""})]
    return list(found.values())


def draw_plainly(python, tmp_path, name, labels, environment=None, **options):
    """Draw by plain diffusers in a new process, and save again.

    Returns:
        Images, `(3, H, W, C)` in [0, 1], and the folder that they were saved to again.
    """
    out, again = tmp_path / "images.npy", tmp_path / "again"
    arguments = json.dumps([str(name), str(out), str(again), labels, *options.items()])
    known = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))}
    known |= {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [python, "-c", DRAWING, arguments],
        env=known | (environment or {"HF_HUB_OFFLINE": "1"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.load(out), again


def draw(pipeline, labels):
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_images": 3} if labels is None else {"class_labels": labels}
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        **arguments, generator=generator, num_inference_steps=3, output_type="np"
    ).images


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipeline", "unconditional"])
def test_plain_diffusers_draws_the_same_pixels_and_saves_the_same_folder(
    request, plain_python, tmp_path, kind
):
    pipeline = request.getfixturevalue(kind)
    labels = ["owl", "cat", 1] if kind == "pipeline" else None
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved, max_shard_size="50KB")
    images, again = draw_plainly(plain_python, tmp_path, saved, labels)
    np.testing.assert_array_equal(images, draw(pipeline, labels))
    # A model that plain diffusers saved again is complete too.
    assert {p.name for p in again.glob("*.py")} == {f"{name}.py" for name in MODULES}
    for path in [*again.glob("*.py"), again / "model_index.json"]:
        assert path.read_bytes() == (saved / path.name).read_bytes()
    ours = LatentDiffusionPipeline.from_pretrained(again)
    assert hash_weights(ours.unet) == hash_weights(pipeline.unet)
    again.rename(tmp_path / "passed on")
    images, _ = draw_plainly(plain_python, tmp_path, tmp_path / "passed on", labels)
    np.testing.assert_array_equal(images, draw(ours, labels))


@pytest.mark.slow
def test_plain_diffusers_loads_a_variant_by_the_name_of_a_repository(
    plain_python, pipeline, hub, tmp_path, process
):
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved)
    pipeline.save_pretrained(saved, variant="copy")
    files = {str(p.relative_to(saved)): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    hub.put("ada/model", files, kind="models")
    environment = hub.environment(tmp_path / "hf")
    environment = {k: v for k, v in environment.items() if k.startswith("HF_")}
    images, _ = draw_plainly(
        plain_python, tmp_path, "ada/model", [2, 0, 1], environment, variant="copy"
    )
    np.testing.assert_array_equal(images, draw(pipeline, [2, 0, 1]))
    sent = {request.path.rpartition("/")[2] for request in hub.asked("GET .*/resolve/")}
    assert "diffusion_pytorch_model.copy.safetensors" in sent
    assert "diffusion_pytorch_model.safetensors" not in sent
