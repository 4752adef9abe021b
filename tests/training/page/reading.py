"""Read a page as a test asks for it."""

import base64
import re
from html.parser import HTMLParser

import numpy as np


class Page(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.paths: dict[str, list[dict[str, str]]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "path":
            self.paths.setdefault(self.texts["figcaption"][-1], []).append(dict(attrs))
        if tag in ("figcaption", "li", "p", "pre", "h1", "script", "label"):
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in self._open:
            if tag in self.texts:
                self.texts[tag][-1] += data
        if self._open[-1:] in (["td"], ["th"]):
            self.tables[-1][-1][-1] += data

    def pictures(self) -> dict[int, bytes]:
        images = [attrs for tag, attrs in self.tags if tag == "img"]
        start = "data:image/png;base64,"
        assert all(x["src"].startswith(start) and x["alt"] for x in images)
        return {int(x["data-step"]): base64.b64decode(x["src"].removeprefix(start)) for x in images}

    def points(self, title: str) -> list[np.ndarray]:
        """Return the places `(n, 2)` of each curve of a plot, in the order of drawing."""
        found = [re.findall(r"[ML] (\S+) (\S+)", attrs["d"]) for attrs in self._curves(title)]
        return [np.array(points, float) for points in found]

    def colours(self, title: str) -> list[str]:
        """Return the colour of each curve of a plot, in the order of drawing."""
        return [re.findall(r"stroke: (#\w+)", x["style"])[0] for x in self._curves(title)]

    def _curves(self, title: str) -> list[dict[str, str]]:
        """Return the paths that are neither axes nor the grid, whose colour is the page's."""
        paths = [attrs for attrs in self.paths[title] if "clip-path" in attrs]
        return [attrs for attrs in paths if "stroke: #" in attrs["style"]]
