"""Pushed models are loaded by repository id, by this package and by plain diffusers alone."""

import numpy as np
import pytest
import torch

from hf_latent.models.frozen import hash_weights
from tests.hub.conftest import TOKEN

OURS = """
import numpy as np, torch
from hf_latent import LatentDiffusionPipeline
pipe = LatentDiffusionPipeline.from_pretrained("ada/model", **options)
"""
PLAIN = """
import sys
own = {name: x for name, x in sys.modules.items() if name.partition(".")[0] == "hf_latent"}
sys.modules |= dict.fromkeys(["hf_latent", *own])  # none of it can be imported
import numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("ada/model", trust_remote_code=True, **options)
assert type(pipe).__module__.startswith("diffusers_modules.")
"""
DRAW = """
pipe.set_progress_bar_config(disable=True)
images = pipe(class_labels=["dog", "owl"], num_inference_steps=2, output_type="np",
              generator=torch.Generator().manual_seed(3)).images
np.save(path, images)
"""


def draw(pipeline):
    return pipeline(
        class_labels=["dog", "owl"],
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(3),
    ).images


@pytest.fixture
def load(process, tmp_path):
    """Load ada/model with this package and draw images."""

    def run(token=None, **options):
        path = tmp_path / "images.npy"
        path.unlink(missing_ok=True)
        outcome = process.run(f"path, options = {str(path)!r}, {options!r}{OURS}{DRAW}", token)
        assert outcome.status == 0, outcome.err
        return np.load(path)

    return run


def test_a_pushed_model_draws_the_same_images(hub, push_model, pipeline, load):
    assert push_model().status == 0
    np.testing.assert_allclose(load(), draw(pipeline), atol=1e-5)


def test_a_revision_is_another_model(hub, push_model, pipeline, model, load):
    assert push_model().status == 0
    before = draw(pipeline)
    pipeline.unet.conv_out.bias.data += 1
    pipeline.save_pretrained(model)
    assert push_model("--revision", "half").status == 0
    after = draw(pipeline)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(load(), before, atol=1e-5)
    np.testing.assert_allclose(load(revision="half"), after, atol=1e-5)
    first = hub.repos["models", "ada/model"].sha("main")
    assert push_model().status == 0
    np.testing.assert_allclose(load(), after, atol=1e-5)
    np.testing.assert_allclose(load(revision=first), before, atol=1e-5)


@pytest.mark.slow
def test_plain_diffusers_draws_the_same_images_and_without_a_network_too(
    hub, push_model, pipeline, process, tmp_path
):
    assert push_model("--private").status == 0
    path, downloaded = tmp_path / "images.npy", str(tmp_path / "downloaded")
    download = "from huggingface_hub import snapshot_download as download\n"
    download += f"download('ada/model', local_dir={downloaded!r})\n"
    code = f"path, options = {str(path)!r}, {{}}{PLAIN}{DRAW}{download}"
    outcome = process.run(code)
    assert outcome.status == 1 and not path.exists()  # private
    outcome = process.run(code, TOKEN)
    assert outcome.status == 0, outcome.err
    assert TOKEN not in outcome.out + outcome.err
    np.testing.assert_allclose(np.load(path), draw(pipeline), atol=1e-5)
    asked = len(hub.requests)
    # Plain diffusers asks for the code's commit, so without a network it takes a folder.
    folder, ours = tmp_path / "folder.npy", tmp_path / "ours.npy"
    code = f"path, options = {str(folder)!r}, {{}}\n{PLAIN.replace('ada/model', downloaded)}{DRAW}"
    code += "for name in ['hf_latent', *own]: del sys.modules[name]\nsys.modules |= own\n"
    code += f"path = {str(ours)!r}{OURS}{DRAW}"
    outcome = process.run(code, HF_HUB_OFFLINE="1")
    assert outcome.status == 0, outcome.err
    for drawn in (folder, ours):
        np.testing.assert_allclose(np.load(drawn), draw(pipeline), atol=1e-5)
    assert len(hub.requests) == asked


def generate(process, tmp_path, model, token=None, **environment):
    output = tmp_path / "grid.png"
    arguments = ("generate", "--model", model, "--output", output, "--num_inference_steps", 1)
    outcome = process.command(*arguments, token=token, **environment)
    assert TOKEN not in outcome.out + outcome.err
    assert output.exists() == (outcome.status == 0)
    output.unlink(missing_ok=True)
    return outcome


def test_generate_loads_a_repository_or_says_in_one_line_why_not(
    hub, push_model, process, tmp_path
):
    assert push_model("--private", repo_id="ada/unseen").status == 0
    hub.add_token("hf_other", "eve")
    for token in (None, "hf_other"):
        outcome = generate(process, tmp_path, "ada/unseen", token)
        assert outcome.status == 2 and outcome.err.count("\n") == 1
        assert outcome.err.startswith(
            "error: no model found at ada/unseen: no such folder, and not on the Hub for this "
            "token: correct the name or, for a private one, run hf auth login (Repo"
        )
        vae = "from hf_latent.models.load import load_autoencoder; load_autoencoder('ada/unseen')"
        said = process.run(vae, token).err.splitlines()[-1]
        assert "no autoencoder found at ada/unseen" in said and "run hf auth login" in said
    outcome = generate(process, tmp_path, "ada/unseen", "hf_unknown")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "Invalid credentials" in outcome.err
    for how, says in ((503, "503 Service Unavailable"), ("drop", "Server disconnected")):
        hub.fail("GET|HEAD", times=1000, how=how)
        outcome = generate(process, tmp_path, "ada/unseen", TOKEN)
        assert outcome.status == 2 and outcome.err.count("\n") == 1
        assert outcome.err.startswith("error: no model found at ada/unseen: ")
        assert says in outcome.err
        hub.faults.clear()
    hub.fail("GET .*resolve.*safetensors", how="cut")
    assert generate(process, tmp_path, "ada/unseen", TOKEN).status == 0
    assert not any(times for _, times, *_ in hub.faults)


def test_its_denoiser_is_found_with_its_scheduler(push_model, pipeline, process):
    assert push_model().status == 0
    outcome = process.run(
        "from hf_latent.models.frozen import hash_weights\n"
        "from hf_latent.models.load import load_denoiser\n"
        "from hf_latent.pipeline.samplers import get_objective\n"
        "unet, scheduler = load_denoiser('ada/model')\n"
        "print(hash_weights(unet), get_objective(scheduler))\n"
    )
    assert outcome.status == 0, outcome.err
    assert outcome.out.split() == [hash_weights(pipeline.unet), "flow"]
