"""Put a page that runs the released student into the site (a hook of MkDocs)."""

import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

from hf_latent.hub.export import ExportConfig, export

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_latent"
CACHE = ROOT / ".cache" / "live_page"
# Fetched by .ci/browser. Without it the page loads the same files from a public address.
RUNTIME = ROOT / ".cache" / "onnxruntime-web"
TITLE = "Latent space, step by step"


def is_current(page: Path) -> bool:
    """Return whether the page was made after the last change of what it is made of."""
    written = page / "page.json"
    sources = [
        *(PACKAGE / "hub" / "page").rglob("*.*"),
        *(PACKAGE / "pipeline").glob("*.py"),
        *(PACKAGE / "models" / "pretrained" / "fashion-mnist-4step").rglob("*.*"),
    ]
    newest = max(path.stat().st_mtime for path in sources if "__pycache__" not in path.parts)
    has_runtime = (page / "runtime").is_dir() == RUNTIME.is_dir()
    return written.exists() and has_runtime and written.stat().st_mtime > newest


def on_post_build(config: MkDocsConfig) -> None:
    """Export the model if its page is not current, which takes half a minute, and copy the page."""
    if not is_current(CACHE):
        settings = ExportConfig(
            model="fashion-mnist-4step",
            output_dir=str(CACHE),
            format="page",
            runtime=str(RUNTIME) if RUNTIME.is_dir() else None,
            title=TITLE,
            overwrite_output_dir=True,
        )
        export(settings)
    shutil.copytree(CACHE, Path(config.site_dir) / "live", dirs_exist_ok=True)
