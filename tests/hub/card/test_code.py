"""The Python blocks of cards run as they stand, each in a process of its own."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_latent.hub.card.render import PLACEHOLDER, write_model_card
from hf_latent.models.load import PRETRAINED, released_models
from tests import forked
from tests.hub.saved_models import ROOT, blocks

CARDS = ROOT / "model_cards"


def run(code: str, cwd: Path, modules: Path) -> str:
    known = os.environ | {"HF_MODULES_CACHE": str(modules), "OMP_NUM_THREADS": "1"}
    known |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = forked.run([sys.executable, "-c", code], cwd=cwd, env=known)
    assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipeline", "unconditional"])
def test_a_pipelines_card_loads_and_draws_both_ways(kind, request, tmp_path):
    request.getfixturevalue(kind).save_pretrained(tmp_path / "model")
    write_model_card(tmp_path / "model")
    ours, plain = blocks((tmp_path / "model" / "README.md").read_text(), "python")
    for number, code in enumerate((ours, plain)):
        assert code.count(f'"{PLACEHOLDER}"') == 1
        code = code.replace(PLACEHOLDER, str(tmp_path / "model"))
        code += "\nimport sys; print(type(pipe).__module__, 'hf_latent' in sys.modules)"
        said = run(code, tmp_path, tmp_path / f"modules{number}").split()
        if number == 0:
            assert said == ["hf_latent.pipeline.pipeline", "True"]
        else:
            assert said[0].startswith("diffusers_modules") and said[1] == "False"
        assert Image.open(tmp_path / "sample.png").size == (16, 16)
        (tmp_path / "sample.png").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("way", [0, 1])
def test_an_autoencoders_card_loads_both_ways(vae, tmp_path, way):
    vae.save_pretrained(tmp_path / "model")
    write_model_card(tmp_path / "model")
    *loading, use = blocks((tmp_path / "model" / "README.md").read_text(), "python")
    code = (loading[way] + use).replace(PLACEHOLDER, str(tmp_path / "model"))
    code += "\nprint(type(vae).__name__, *latents.shape, *reconstructions.shape)"
    assert run(code, tmp_path, tmp_path) == "AutoencoderKL 1 4 4 4 1 1 16 16\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", released_models())
def test_a_released_models_card_runs_as_it_stands(name, tmp_path):
    (tmp_path / "hf_latent").symlink_to(ROOT / "hf_latent")  # where a reader of the repository is
    python = blocks((CARDS / name / "README.md").read_text(), "python")
    if (PRETRAINED / name / "model_index.json").is_file():
        for number, code in enumerate(python):
            run(code, tmp_path, tmp_path / f"modules{number}")
            assert Image.open(tmp_path / "sample.png").size[0] >= 16
        return
    *loading, use = python
    for code in loading:
        said = run(
            f"{code}{use}\nprint(*images.shape)\nprint(*reconstructions.shape)", tmp_path, tmp_path
        )
        shapes = said.splitlines()
        assert shapes[0] == shapes[1]
