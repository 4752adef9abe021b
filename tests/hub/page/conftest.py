"""A page of a tiny model with colours and classes."""

from pathlib import Path

import pytest

from hf_latent.cli import main
from hf_latent.hub.page.write import RUNTIME_FILES
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import make_autoencoder, make_denoiser

CLASSES = {0: "cat", 1: "dog", 2: "<b>owl</b>"}
TITLE = 'Own "pictures": <i>tiny</i>'


@pytest.fixture(scope="session")
def model() -> LatentDiffusionPipeline:
    vae = make_autoencoder(3)
    guidance = {"guidance_scale": 3.0, "guidance_interval": [0.0, 0.8]}
    scheduler = create_scheduler("flow")
    model = LatentDiffusionPipeline(vae, make_denoiser(vae), scheduler, CLASSES, guidance=guidance)
    model.set_progress_bar_config(disable=True)
    return model


@pytest.fixture(scope="session")
def runtime(tmp_path_factory) -> Path:
    """Files of the runtime's names, which no test of this fixture runs."""
    folder = tmp_path_factory.mktemp("dist")
    for name in RUNTIME_FILES:
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture(scope="session")
def page(tmp_path_factory, model, runtime) -> Path:
    """The page that the command writes."""
    root = tmp_path_factory.mktemp("page")
    model.save_pretrained(root / "model")
    page = root / "page"
    command = f"export --model {root / 'model'} --format page --output_dir {page}"
    main([*command.split(), "--runtime", str(runtime), "--title", TITLE])
    return page
