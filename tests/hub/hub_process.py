"""Python programs for which the loopback Hub is the Hub."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import forked
from tests.hub.loopback_hub import LoopbackHub

NO_WAITS = "import time; time.sleep = lambda seconds: None  # between attempts\n"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


class HubProcess:
    """Runs commands and code against a loopback Hub.

    Args:
        hub: a running one.
        home: a folder for HF_HOME.
        imports: modules to import beforehand.
    """

    def __init__(self, hub: LoopbackHub, home: Path, imports: Sequence[str] = ()):
        self.home = home
        self.environment = hub.environment(home / "hf") | {"OMP_NUM_THREADS": "1"}
        forked.warm(self.environment, imports)

    def run(self, code: str, token: str | None = None, **environment: str) -> Outcome:
        """Run Python code; `environment` must be read after imports, not during them."""
        known = self.environment | environment | ({"HF_TOKEN": token} if token else {})
        done = forked.run([sys.executable, "-c", NO_WAITS + code], env=known, timeout=60)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def command(
        self, *arguments: object, token: str | None = None, before: str = "", **environment: str
    ) -> Outcome:
        """Run `hf-latent ARGUMENTS`, after some code."""
        words = [str(x) for x in arguments]
        code = f"{before}\nfrom hf_latent.cli import main\nmain({words!r})"
        return self.run(code, token, **environment)
