"""What a reader follows from page to page."""

import json
import os
import re
import subprocess
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import ROOT, navigation, read

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()

TEMPLATES = {page for page in TRACKED if re.fullmatch(r"hf_latent/(?!models/|data/).*", page)}


def anchors(text: str) -> set[str]:
    """The names that a Markdown page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", [page for page in TRACKED if page not in TEMPLATES])
def test_links_lead_somewhere(page):
    """Outside docs/ too, where MkDocs does not look."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        address = urlsplit(target)
        if address.scheme:
            assert address.scheme == "https" and address.netloc, target
            continue
        if page.startswith("docs/") and address.path.startswith(("reference/", "../reference/")):
            continue  # made when the site is
        path = (ROOT / page).parent / address.path if address.path else ROOT / page
        assert path.exists(), target
        if address.fragment and path.suffix == ".md":
            assert address.fragment in anchors(path.read_text()), target


def test_frames_show_what_the_site_has():
    lesson = json.loads((ROOT / "docs/reports/lesson/report.json").read_text())
    frames = {"reports/lesson": [lesson["page"]]}
    for page, folder in (("index.md", "."), ("lesson.md", "lesson")):
        frames[folder] = re.findall(r'<iframe [^>]*src="([^"]+)"', read(page))
    assert all(frames.values())
    for folder, sources in frames.items():
        for source in sources:
            shown = os.path.normpath(f"{folder}/{source}")
            # docs/live_page.py makes that one when the site is made.
            assert shown == "live/index.html" or (ROOT / "docs" / shown).exists(), shown


def test_every_page_is_in_the_navigation():
    written = {x.relative_to(ROOT / "docs").as_posix() for x in (ROOT / "docs").rglob("*.md")}
    written |= {x.relative_to(ROOT / "docs").as_posix() for x in (ROOT / "docs").rglob("*.ipynb")}
    pages = {page for page in navigation() if not page.startswith("reference/")}
    assert {page for page in written if not page.startswith("reports/")} == pages


def test_the_readme_is_short():
    assert len(read("README.md").encode()) <= 7_000
