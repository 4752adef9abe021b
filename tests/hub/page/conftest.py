"""A page of a tiny model with colours and classes."""

import base64
import functools
import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hf_latent.cli import main
from hf_latent.hub.page.write import RUNTIME_FILES
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import CHROMIUM, make_autoencoder, make_denoiser

RUNTIME = Path(__file__).parents[3] / ".cache" / "onnxruntime-web"
needs_browser = pytest.mark.skipif(
    not CHROMIUM or not all((RUNTIME / name).is_file() for name in RUNTIME_FILES),
    reason="no Chromium, or no onnxruntime for browsers: run .ci/browser",
)
# What a canvas shows: red, green, blue and alpha of each pixel.
PIXELS_OF = """id => Array.from(document.getElementById(id).getContext('2d').getImageData(0, 0,
    document.getElementById(id).width, document.getElementById(id).height).data)"""
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


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="session")
def address(page) -> Iterator[str]:
    """Where a plain web server serves the page; its runtime is the real one."""
    served = page.parent / "served"
    shutil.copytree(page, served)
    settings = (served / "page.json").read_text()
    for name in RUNTIME_FILES:
        (served / "runtime" / name).unlink()
        shutil.copy(RUNTIME / name, served / "runtime" / name)
        old = digest((page / "runtime" / name).read_bytes())
        settings = settings.replace(old, digest((RUNTIME / name).read_bytes()))
    (served / "page.json").write_text(settings)
    handler = functools.partial(QuietHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha384(content).digest()).decode()


def drawn_classes(tab) -> list[list[int]]:
    tab.get_by_role("button", name="Draw every class").click()
    tab.locator("#denoise-words").get_by_text("3 classes drawn").wait_for()
    read = PIXELS_OF.replace("document.getElementById(id)", "x").replace("id =>", "x =>")
    return tab.locator("#strip canvas").evaluate_all(f"all => all.map({read})")
