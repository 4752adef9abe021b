"""A Python that takes the loopback Hub for the Hub: one warm process, forked for each command.

huggingface_hub reads its environment when it is imported, so what talks to another Hub needs a
process of its own; importing torch for each command would take most of the tests' time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.hub.loopback_hub import LoopbackHub

WARM = """
import json, os, signal, sys, time, traceback
for name in json.loads(sys.argv[1]):
    __import__(name)
time.sleep = lambda seconds: None  # the waits between attempts
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # what hangs ends
        os.dup2(os.open(job["out"], os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(job["err"], os.O_WRONLY | os.O_CREAT), 2)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update(job["environment"])
        status = 1
        try:
            exec(compile(job["code"], "<command>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


class HubProcess:
    """Runs commands and code against a loopback Hub.

    Args:
        hub: a running one.
        home: a folder for HF_HOME and the outputs.
        imports: modules to have at hand.
    """

    def __init__(self, hub: LoopbackHub, home: Path, imports: tuple[str, ...] = ()):
        self.home = home
        self.count = 0
        environment = hub.environment(home / "hf") | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WARM, json.dumps(["huggingface_hub", *imports])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        # Another test's forked process may still hold the other end: it would never see the end.
        self._process.kill()
        self._process.wait(20)
        self._process.stdout.close()

    def run(self, code: str, token: str | None = None, **environment: str) -> Outcome:
        """Run Python code; `environment` is what is read at the time of a call, not of import."""
        self.count += 1
        out, err = (self.home / f"{self.count}.{name}" for name in ("out", "err"))
        known = environment | ({"HF_TOKEN": token} if token else {})
        job = {"code": code, "out": str(out), "err": str(err), "environment": known}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        texts = [path.read_text() if os.path.exists(path) else "" for path in (out, err)]
        return Outcome(status, *texts)

    def command(
        self, *arguments: object, token: str | None = None, before: str = "", **environment: str
    ) -> Outcome:
        """Run `hf-latent ARGUMENTS`, after some code."""
        words = [str(x) for x in arguments]
        code = f"{before}\nfrom hf_latent.cli import main\nmain({words!r})"
        return self.run(code, token, **environment)
