"""Python processes forked from a server that has imported torch, in place of `subprocess`.

Importing torch and diffusers takes 6 seconds, and about 100 tests run a program. `run` and `start`
take what `subprocess.run` and `subprocess.Popen` take: `[sys.executable, "-c", CODE, ...]`,
`[sys.executable, "-m", MODULE, ...]`, `[sys.executable, SCRIPT, ...]`, or a Python script such as
`bin/hf-latent` first. The program then runs as Python runs it: as `__main__`, leader of a session
of its own, with its own arguments, folder, environment and streams, signals that reach it, and the
exit status, traceback and handlers at exit of the interpreter.

The server never imports hf_latent, starts none of torch's threads, and computes nothing. Libraries
that read the environment when they are imported are imported after that environment is set: a
server for each environment is forked from the first one, which has only libraries that do not.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NoReturn

READ_AT_IMPORT = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "XDG_", "HOME")
FIRST = (
    *("torch.distributed", "torch.utils.data", "torch.utils.tensorboard", "torch._dynamo"),
    *("matplotlib.pyplot", "pandas", "pyarrow.parquet", "PIL.Image", "jinja2", "yaml"),
)
SECOND = (
    *("accelerate", "datasets", "huggingface_hub.hf_api", "jsonargparse", "torchmetrics.image"),
    *("transformers.modeling_utils", "diffusers.models.autoencoders", "diffusers.training_utils"),
    *("diffusers.models.unets.unet_2d_condition", "diffusers.pipelines.pipeline_utils"),
)
INSTALLED = sys.path[1:]


# In the server, and in the processes that are forked from it.


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; return the request, in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watching processes
    gc.freeze()  # a search for garbage would copy every page that forked processes share
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not message:
            os._exit(0)  # the tests ended
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    wire = socket.socket(fileno=descriptors[0])
    with wire.makefile() as lines:
        request = json.loads(lines.readline())
    if program := os.fork():
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        with suppress(BrokenPipeError):  # if nobody waits for it
            wire.send(b"%d\n" % program)
            wire.send(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
        os._exit(0)
    wire.close()
    for number, descriptor in enumerate(descriptors[1:]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return request


def enter(request: dict[str, Any]) -> None:
    """Take over the folder and the environment that a request names."""
    os.setsid()
    # Tests that run in the background of a shell ignore Ctrl-C, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = ["", *paths, *INSTALLED]
    # Libraries read OMP_NUM_THREADS when they are loaded.
    torch = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1)


def run_as_main(words: list[str]) -> None:
    """Run a program as `python WORDS` runs it."""
    if words[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        code = compile(words[1], "<string>", "exec")
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
        sys.argv = words
        main.__file__ = os.path.abspath(words[0])
        with open(words[0], "rb") as script:
            code = compile(script.read(), main.__file__, "exec")
    exec(code, main.__dict__)


def run_and_exit(words: list[str]) -> NoReturn:
    """Run a program and end as the interpreter ends, except that no memory is cleared.

    Clearing would first copy the memory that all forked processes share.
    """
    status = 0
    try:
        run_as_main(words)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        text = f"Exception ignored in: {sys.stdout}\n{type(error).__name__}: {error}"
        print(text, file=sys.stderr)
        status = 120
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def main() -> None:
    """Import and serve, again in each server that is forked; run a program where one is asked."""
    request: dict[str, Any] = {"preload": FIRST}
    while "preload" in request:
        for name in request["preload"]:
            importlib.import_module(name)
        request = serve(socket.socket(fileno=os.dup(0)))
        enter(request)
    run_and_exit(request["words"])


# In the tests.


class Process:
    """A forked process, with the attributes and methods of `subprocess.Popen`."""

    def __init__(self, server: socket.socket, request: dict[str, Any], streams: Sequence[int]):
        self.args = request.get("words")
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        self._wire, far = socket.socketpair()
        with far:
            socket.send_fds(server, [b"x"], [far.fileno(), *streams])
        self._wire.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._wire.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._wire], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._wire], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args or [], timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._wire.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        deadline = None if timeout is None else time.monotonic() + timeout
        texts = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            texts[number] = stream.read()

        streams = [(n, x) for n, x in enumerate((self.stdout, self.stderr)) if x and not x.closed]
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in streams]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(deadline and max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args or [], timeout or 0)
        for _, stream in streams:
            stream.close()
        self.wait(deadline and max(0, deadline - time.monotonic()))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def first_server() -> socket.socket:
    """Start the server that has imported only what does not read the environment."""
    control, far = socket.socketpair()
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=far,
        stdout=subprocess.DEVNULL,
        env=kept | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    far.close()
    atexit.register(server.kill)
    return control


def read_at_import(environment: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(
        pair
        for pair in environment.items()
        if pair[0].startswith(READ_AT_IMPORT) and pair[0] != "HF_TOKEN"
    )


_servers: dict[frozenset[tuple[str, str]], socket.socket] = {}


def warm(environment: Mapping[str, str], modules: Sequence[str] = ()) -> None:
    """Fork a server for the programs of an environment, which has also imported the modules."""
    control, far = socket.socketpair()
    request = {
        "preload": [*SECOND, *modules],
        "environment": dict(environment),
        "cwd": os.getcwd(),
    }
    with far, open(os.devnull, "w") as nowhere:
        Process(first_server(), request, (far.fileno(), nowhere.fileno(), 2))
    _servers[read_at_import(environment)] = control


def start(
    arguments: Sequence[object],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike | None = None,
) -> Process:
    """Start a Python program whose output goes to pipes.

    Args:
        arguments: `sys.executable` and its arguments, or a Python script and its own.
        env: the environment; None for this process's.
        cwd: the folder to start in; None for this process's.
    """
    environment = dict(os.environ if env is None else env)
    if read_at_import(environment) == read_at_import(os.environ) not in _servers:
        warm(environment)
    words = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in arguments]
    if words[0] == sys.executable:
        words = words[1:]
    request = {"words": words, "environment": environment, "cwd": os.fspath(cwd or os.getcwd())}
    server = _servers.get(read_at_import(environment)) or first_server()
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    with open(os.devnull) as nothing:
        process = Process(server, request, (nothing.fileno(), to_out, to_err))
    os.close(to_out)
    os.close(to_err)
    process.stdout, process.stderr = os.fdopen(out), os.fdopen(err)
    return process


def start_ranks(
    arguments: Sequence[object], count: int = 2, env: Mapping[str, str] | None = None
) -> list[Process]:
    """Start a program in processes that find each other, as torchrun starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known = {**(os.environ if env is None else env), **place}
    return [start(arguments, known | {"RANK": x, "LOCAL_RANK": x}) for x in map(str, range(count))]


def run(
    arguments: Sequence[object],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end, or kill it after `timeout` seconds."""
    process = start(arguments, env, cwd)
    try:
        stdout, stderr = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.wait(), stdout, stderr)


if __name__ == "__main__":
    main()
