"""The Python blocks of cards run as they stand: one process with this package, one without."""

import json
import os
import sys

import pytest
from PIL import Image

from hf_latent.hub.card.render import PLACEHOLDER, write_model_card
from hf_latent.models.load import PRETRAINED, released_models
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests import forked
from tests.conftest import make_autoencoder, make_denoiser
from tests.hub.saved_models import ROOT, blocks
from tests.pipeline.test_prompts import make_words

pytestmark = pytest.mark.slow
CARDS = ROOT / "model_cards"
OWN, PLAIN = "with this package", "with diffusers alone"
# Runs each block in its own folder and namespace, and describes the results by their names.
RUN = """
import json, os, sys
known = {
    "pipe": lambda x: type(x).__module__,
    "vae": lambda x: type(x).__name__,
    "images": lambda x: list(x.shape),
    "latents": lambda x: list(x.shape),
    "reconstructions": lambda x: list(x.shape),
}
found = {}
for name, (folder, code) in json.loads(sys.argv[1]).items():
    os.makedirs(folder)
    os.chdir(folder)
    os.symlink(sys.argv[2], "hf_latent")  # as in the repository's root
    names = {}
    exec(code, names)
    found[name] = {key: describe(names[key]) for key, describe in known.items() if key in names}
print(json.dumps([found, "hf_latent" in sys.modules]))
"""


def saved_models(folder) -> dict:
    """The cards of freshly saved models, by name."""
    vae = make_autoencoder()
    models = {"autoencoder": vae}
    for name, classes in (("pipeline", 3), ("unconditional", None)):
        unet = make_denoiser(vae, classes)
        models[name] = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"))
    models["words"] = make_words()
    cards = {}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        write_model_card(folder / name)
        card = (folder / name / "README.md").read_text()
        assert f'"{PLACEHOLDER}"' in card
        cards[name] = card.replace(PLACEHOLDER, str(folder / name))
    return cards


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The results of each card's blocks, by way and name, and the folder that they ran in."""
    root = tmp_path_factory.mktemp("cards")
    cards = saved_models(root / "models")
    cards |= {name: (CARDS / name / "README.md").read_text() for name in released_models()}
    environment = os.environ | {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    forked.warm(environment)
    made = {}
    for number, way in enumerate((OWN, PLAIN)):
        jobs = {}
        for name, card in cards.items():
            python = blocks(card, "python")
            if "load_autoencoder" in card:
                *loading, use = python
                python = [code + use for code in loading]
            if number < len(python):  # a released pipeline has no code
                jobs[name] = (str(root / way / name), python[number])
        arguments = [sys.executable, "-c", RUN, json.dumps(jobs), str(ROOT / "hf_latent")]
        done = forked.run(arguments, environment)
        assert done.returncode == 0, done.stderr[-2000:]
        made[way], uses_package = json.loads(done.stdout.splitlines()[-1])
        assert uses_package == (way == OWN)
    return made, root


@pytest.mark.parametrize("way", [OWN, PLAIN])
@pytest.mark.parametrize("name", ["pipeline", "unconditional"])
def test_a_pipelines_card_loads_and_draws(ran, name, way):
    made, root = ran
    module = made[way][name]["pipe"]
    assert module.startswith("hf_latent.pipeline." if way == OWN else "diffusers_modules.")
    assert Image.open(root / way / name / "sample.png").size == (16, 16)


@pytest.mark.parametrize("way", [OWN, PLAIN])
def test_an_autoencoders_card_loads_encodes_and_decodes(ran, way):
    images = [1, 1, 16, 16]
    assert ran[0][way]["autoencoder"] == {
        "vae": "AutoencoderKL",
        "images": images,
        "latents": [1, 4, 4, 4],
        "reconstructions": images,
    }


@pytest.mark.parametrize("name", released_models())
def test_a_released_models_card_runs_as_it_stands(ran, name):
    made, root = ran
    if (PRETRAINED / name / "model_index.json").is_file():
        assert name in made[OWN] and name not in made[PLAIN]
        assert Image.open(root / OWN / name / "sample.png").size[0] >= 16
        return
    for way in (OWN, PLAIN):
        assert made[way][name]["images"] == made[way][name]["reconstructions"]
