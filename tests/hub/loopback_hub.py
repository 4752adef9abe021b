"""A small Hub on loopback, so that tests push and read over real HTTP; for tests only.

It keeps model and data set repositories in memory and answers what huggingface_hub asks of the true
Hub: accounts, repositories, LFS, commits, pull requests, revisions, trees, files and their ranges.
It refuses what the Hub refuses (missing, private and foreign repositories, read-only tokens), fails
when told to, and keeps a record of every request. It has no gating, nothing is merged, and it has
only the token of Xet.

    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "ada")
        hub.put("ada/latents", {"manifest.json": b"{}"})
        subprocess.run([...], env=hub.environment(tmp_path, "hf_writer"))
"""

import json
import os
import re
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.hub.loopback_endpoints import ROUTES, Account, Answer, Endpoints
from tests.hub.loopback_repo import Blob, Refusal, Repo

Request = namedtuple("Request", "method path headers")
FAULTS = ("drop", "lost", "cut")  # before the action; after the action; in the middle of the answer


class LoopbackHub(Endpoints):
    """The server: a context manager; `endpoint` is its address.

    Attributes:
        repos: by ("models" or "datasets", "user/name").
        requests: what was asked, in order, with the headers by their names in lower case.
        page_size: the most entries in one page of a tree.
    """

    def __init__(self) -> None:
        self.repos = {}
        self.page_size = 1000
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.clear()

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Forget everything but the address."""
        self.repos.clear()
        self.tokens = {}
        self.stored = {}
        self.xet = ""
        self.requests: list[Request] = []
        self.faults: list[list[Any]] = []

    def add_token(self, token: str, name: str, role: str = "write") -> None:
        """Accept a token as that of a user; role is write or read."""
        self.tokens[token] = Account(name, role)

    def put(
        self, repo_id: str, files: dict[str, bytes], kind: str = "datasets", **repo: Any
    ) -> Repo:
        """Create a repository, or add a commit to its main; `private` is for a new one."""
        found = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id, **repo))
        blobs = {path: Blob(data, Blob.is_large(path, data)) for path, data in files.items()}
        found.commit("main", found.files("main") | blobs, "put")
        return found

    def fail(self, pattern: str, times: int = 1, how: int | str = 500, after: int = 0) -> None:
        """Fail the next requests whose "METHOD /path?query" matches a pattern, after some that do.

        how: a status, or one of `FAULTS`.
        """
        assert isinstance(how, int) or how in FAULTS
        self.faults.append([pattern, times, how, after])

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests whose "METHOD /path?query" matches a pattern."""
        return [x for x in self.requests if re.search(pattern, f"{x.method} {x.path}")]

    def environment(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """Return the environment of a process for which this is the Hub."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        ours |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return kept | ours | ({"HF_TOKEN": token} if token else {})

    def take_fault(self, line: str) -> int | str | None:
        for fault in self.faults:
            pattern, times, how, after = fault
            if times and re.search(pattern, line):
                if after:
                    fault[3] -= 1
                    continue
                fault[1] -= 1
                return how
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out whole: its second part would wait 40 ms for an ACK

    def log_message(self, *_: Any) -> None:
        pass

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, path: str, query: str, body: bytes, headers: dict[str, str]) -> Answer:
        method = "GET" if self.command == "HEAD" else self.command
        flat = {k: v[-1] for k, v in parse_qs(query, keep_blank_values=True).items()}
        try:
            for verb, pattern, name in ROUTES:
                found = pattern.fullmatch(path)
                if verb == method and found:
                    parts = {k: unquote(v) for k, v in found.groupdict().items() if v}
                    with self.hub.lock:
                        who = self.hub.account(headers)
                        if "id" in parts:
                            kind, repo_id = parts.pop("kind", None), parts.pop("id")
                            parts["repo"] = self.hub.readable(kind, repo_id, who)
                        given = {"query": flat, "body": body, "account": who, "headers": headers}
                        result = getattr(self.hub, name)(**parts, **given)
                    return result if isinstance(result, tuple) else _as_json(200, result)
            raise Refusal(404, f"no endpoint {self.command} {path}")
        except Refusal as refusal:
            status, headers, data = _as_json(refusal.status, refusal.body)
            return status, headers | refusal.headers, data

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        body, line = self._read(), f"{self.command} {self.path}"
        asked = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, asked))
            fault = self.hub.take_fault(line)
        if isinstance(fault, int):
            status, headers, data = fault, {"Content-Type": "text/html"}, b"<html>broken</html>"
        elif fault == "drop":
            self.close_connection = True
            return
        else:
            status, headers, data = self._answer(path, query, body, asked)
        if fault == "lost":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve


def _as_json(status: int, value: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
