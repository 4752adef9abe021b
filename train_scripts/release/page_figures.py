"""Try the page of a released model in Chromium: times and pictures for the docs.

.ci/browser
python train_scripts/release/page_figures.py --output_dir docs/reports/page
"""

import functools
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from jsonargparse.typing import PositiveInt
from playwright.sync_api import Browser, Page, sync_playwright

from hf_latent.command import Settings, run_command
from hf_latent.evaluation.machine import machine_figures
from hf_latent.hub.page.write import DEFAULT_STEPS, RUNTIME_VERSION, write_page
from hf_latent.models.load import find_model
from hf_latent.output import write_json
from hf_latent.pipeline import LatentDiffusionPipeline

SCREENS = {"desk-light": (1280, "light"), "hand-dark": (390, "dark")}


@dataclass(frozen=True, kw_only=True)
class PageFiguresConfig(Settings):
    """Open the page, click, and write page.json and screenshots.

    Attributes:
        output_dir: The folder to write.
        model: The name of a released model with classes.
        runtime: The folder with the files of onnxruntime-web.
        chromium: The browser's program.
        rounds: How often each button is clicked.
    """

    output_dir: str
    model: str = "fashion-mnist-4step"
    runtime: str = ".cache/onnxruntime-web"
    chromium: str = "/usr/bin/chromium"
    rounds: PositiveInt = 5


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def open_page(browser: Browser, address: str, width: int, scheme: Any) -> tuple[Page, float]:
    """Return a tab whose model is loaded, and the seconds that this took."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    start = time.perf_counter()
    tab.goto(address)
    tab.locator("#status").get_by_text("Ready.").wait_for(timeout=120_000)
    return tab, time.perf_counter() - start


def time_click(tab: Page, button: str, rounds: int) -> float:
    """Return the median seconds from a click to the words after the last picture."""
    seconds = []
    for _ in range(rounds):
        tab.evaluate("document.getElementById('denoise-words').textContent = ''")
        start = time.perf_counter()
        tab.get_by_role("button", name=button).click()
        tab.wait_for_function("document.getElementById('denoise-words').textContent", polling=10)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def measure_page(config: PageFiguresConfig) -> None:
    """Write the page, try it, and write the report last."""
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    pipeline = LatentDiffusionPipeline.from_pretrained(find_model(config.model))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        graphs = write_page(pipeline, config.model, Path(config.runtime), Path(folder))
        browser = playwright.chromium.launch(executable_path=config.chromium, args=["--no-sandbox"])
        with served(Path(folder)) as address:
            for name, (width, scheme) in SCREENS.items():
                tab, load_seconds = open_page(browser, address, width, scheme)
                tab.screenshot(path=output_dir / f"{name}.png", full_page=True)
            figures: dict[str, Any] = {
                "load_seconds": load_seconds,  # the second time, from a local server
                "classes": pipeline.num_classes,
                "num_inference_steps": pipeline.config.num_inference_steps or DEFAULT_STEPS,
                "seconds_to_every_class": time_click(tab, "Draw every class", config.rounds),
                "seconds_to_one_picture": time_click(tab, "Denoise", config.rounds),
                "chromium_version": browser.version,
            }
        browser.close()
    figures |= {"model": config.model, "rounds": config.rounds, "graphs": graphs}
    figures |= {"onnxruntime_web_version": RUNTIME_VERSION}
    write_json(output_dir / "page.json", figures | machine_figures())


if __name__ == "__main__":
    run_command(PageFiguresConfig, measure_page)
