"""The pages that a reader sees, in the order of the site, and what is in them."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "docs" / "reports"


class Block(NamedTuple):
    """A code block of a page: what to run, and in which language."""

    page: str
    language: str
    text: str


def navigation() -> list[str]:
    """Return the site's pages as `mkdocs.yml` orders them, below docs/."""
    # MkDocs' own loader knows tags that are of no use here.
    text = (ROOT / "mkdocs.yml").read_text()
    sections = yaml.safe_load(text[text.index("nav:") :])["nav"]
    entries = [entry for section in sections for entry in section.values()]
    pages = [page for entry in entries for page in ([entry] if isinstance(entry, str) else entry)]
    return [page if isinstance(page, str) else next(iter(page.values())) for page in pages]


def read(page: str) -> str:
    """Return a page's text: `README.md`, or one below docs/."""
    return (ROOT / page if page == "README.md" else ROOT / "docs" / page).read_text()


def prose(page: str) -> str:
    """Return a page's text on one line, since a figure may go over the end of a line."""
    return " ".join(read(page).split())


def row(page: str, start: str) -> str:
    """Return the page's only table row that starts so."""
    (line,) = (line for line in read(page).splitlines() if line.startswith(f"| {start}"))
    return line


def code_blocks() -> list[Block]:
    """Return what the pages tell a reader to run, in order; a command is on one line."""
    written = [page for page in navigation() if (ROOT / "docs" / page).suffix == ".md"]
    pages = ["README.md", *(page for page in written if not page.startswith("reference/"))]
    return [
        Block(page, language, re.sub(r" \\\n +", " ", text))
        for page in pages
        for language, text in re.findall(r"```(bash|python)\n(.*?)```", read(page), re.DOTALL)
    ]
