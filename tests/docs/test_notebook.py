"""The notebook of the site runs, with few steps on few images."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "guides" / "first_model.ipynb"
SHORT = {
    "steps = 1500": "steps = 2",
    '"validation_steps": 500,': '"max_train_samples": 40, "max_validation_samples": 8,',
}
# Few images, and models and pictures that are small.
SMALL = """
from hf_latent.data.images import sources
from tests.small import few_images, small_trainings
small = small_trainings()
small.__enter__().setitem(sources.BUILT_IN, "fashion_mnist", few_images)
"""


@pytest.mark.slow
def test_it_runs_and_shows_images(tmp_path, monkeypatch):
    # A kernel begins like any program, so it must find the package and no network.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    text = nbformat.writes(notebook)
    for cell in notebook.cells:
        for long, short in SHORT.items():
            cell.source = cell.source.replace(long, short)
    assert all(long.replace('"', '\\"') in text for long in SHORT)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SMALL))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) == 3
    assert (tmp_path / "unet" / "model" / "model_index.json").is_file()


def test_it_is_kept_with_its_pictures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 3
    assert not [x for x in outputs if x["output_type"] == "error"]


def test_its_links_lead_to_pages():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    targets = re.findall(r"\]\((.*?)\)", "".join(cell.source for cell in notebook.cells))
    assert [target for target in targets if target.endswith(".md")]
    assert all((NOTEBOOK.parent / target).is_file() for target in targets)
    spec = spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    for name, link in (("first_model.ipynb", "../planning/"), ("hub.md", "planning.md")):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=f"guides/{name}"))
        html = hooks.on_page_content('<a href="planning.md">', page, None, None)
        assert html == f'<a href="{link}">'
