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
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.hub_format import MINIMUM_DIFFUSERS
from hf_latent.pipeline.saved_files import MODULES
from tests.autoencoder_kinds import make_kind_pipeline
from tests.hub.conftest import TOKEN

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
DRAWING = """
import json, os, sys
import numpy as np, torch
from importlib.util import find_spec
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DModel
from diffusers import FlowMatchEulerDiscreteScheduler

assert find_spec("hf_latent") is None and find_spec("datasets") is None
torch.set_num_threads(1)
for name, out, again, labels, options in json.loads(sys.argv[1]):
    if os.fork():  # one process for each model: none sees another's code
        assert os.wait()[1] == 0
        continue
    pipe = DiffusionPipeline.from_pretrained(
        name, trust_remote_code=True, use_safetensors=True, **options
    )
    assert type(pipe).__module__.startswith("diffusers_modules"), type(pipe)
    arguments = {"num_images": 3} if labels is None else {"class_labels": labels}
    generator = torch.Generator().manual_seed(0)
    images = pipe(**arguments, generator=generator, num_inference_steps=3, output_type="np").images
    np.save(out, images)
    pipe.save_pretrained(again)
    if "HF_TOKEN" in os.environ:
        pipe.push_to_hub("ada/again")
    os._exit(0)  # clearing would first copy the memory that it shares
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


def draw_plainly(python, folder, jobs, environment=None):
    """Draw by plain diffusers in another process, and save again.

    Args:
        python: the program.
        folder: for caches.
        jobs: for each model its name, the file for images `(3, H, W, C)` in [0, 1], the folder to
            save it to again, class labels, and arguments of `from_pretrained`.
        environment: what replaces `HF_HUB_OFFLINE=1`.
    """
    known = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))}
    known |= {"HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(
        [python, "-c", DRAWING, json.dumps(jobs, default=str)],
        env=known | (environment or {"HF_HUB_OFFLINE": "1"}),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def draw(pipeline, labels):
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_images": 3} if labels is None else {"class_labels": labels}
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        **arguments, generator=generator, num_inference_steps=3, output_type="np"
    ).images


@pytest.mark.slow
def test_plain_diffusers_draws_the_same_pixels_and_saves_the_same_folder(
    pipeline, unconditional, plain_python, tmp_path
):
    models = {"classes": (pipeline, ["owl", "cat", 1]), "none": (unconditional, None)}
    # Two autoencoders with scales of their own.
    models |= {name: (make_kind_pipeline(name), None) for name in ("flux2", "rae")}
    jobs = []
    for kind, (model, labels) in models.items():
        model.save_pretrained(tmp_path / kind / "saved", max_shard_size="50KB")
        saved, again, third = (tmp_path / kind / name for name in ("saved", "again", "third"))
        # Whoever got it from plain diffusers can pass it on.
        jobs += [(saved, f"{saved}.npy", again, labels, {})]
        jobs += [(again, f"{again}.npy", third, labels, {})]
    draw_plainly(plain_python, tmp_path, jobs)
    for (model, labels), saved, again in zip(models.values(), jobs[::2], jobs[1::2], strict=True):
        np.testing.assert_array_equal(np.load(saved[1]), draw(model, labels))
        assert {p.name for p in again[0].glob("*.py")} == {f"{name}.py" for name in MODULES}
        for path in [*again[0].glob("*.py"), again[0] / "model_index.json"]:
            assert path.read_bytes() == (saved[0] / path.name).read_bytes()
        ours = LatentDiffusionPipeline.from_pretrained(again[0])
        assert hash_weights(ours.unet) == hash_weights(model.unet)
        np.testing.assert_array_equal(np.load(again[1]), draw(ours, labels))


@pytest.mark.slow
def test_plain_diffusers_loads_a_variant_by_the_name_of_a_repository_and_pushes_it_with_a_card(
    plain_python, pipeline, hub, tmp_path, process
):
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved)
    pipeline.save_pretrained(saved, variant="copy")
    files = {str(p.relative_to(saved)): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    hub.put("ada/model", files, kind="models")
    environment = hub.environment(tmp_path / "hf", TOKEN)
    environment = {k: v for k, v in environment.items() if k.startswith("HF_")}
    out = tmp_path / "images.npy"
    job = ("ada/model", out, tmp_path / "again", [2, 0, 1], {"variant": "copy"})
    draw_plainly(plain_python, tmp_path, [job], environment)
    np.testing.assert_array_equal(np.load(out), draw(pipeline, [2, 0, 1]))
    sent = {request.path.rpartition("/")[2] for request in hub.asked("GET .*/resolve/")}
    assert "diffusion_pytorch_model.copy.safetensors" in sent
    assert "diffusion_pytorch_model.safetensors" not in sent
    card = hub.repos["models", "ada/again"].files("main")["README.md"].data.decode()
    assert ModelCard(card).data.library_name == "diffusers"
    assert 'from_pretrained("ada/again", trust_remote_code=True, use_safetensors=True)' in card
    assert "More Information Needed" not in card and MINIMUM_DIFFUSERS in card
