"""A forked process behaves like a real one."""

import os
import signal
import subprocess
import sys

import pytest

from tests import forked

PROGRAMS = {
    "ends well": "print('done')",
    "ends with a status": "import sys; sys.exit(3)",
    "ends with a message": "import sys; sys.exit('why')",
    "ends by a signal": "import os; os.kill(os.getpid(), 15)",
    "is interrupted": "import os; os.kill(os.getpid(), 2); os.getpid()",
    "has handlers at exit": "import atexit; atexit.register(print, 'late'); print('early')",
    "waits for its threads": "import threading as t; t.Timer(0.1, print, ['late']).start()",
    "sees its arguments": "import sys; print(sys.argv, sys.path, __name__)",
    "reads nothing": "import sys; print(sys.stdin.read() == '')",
    "sees itself": "import sys; x = 5; print(sys.modules['__main__'].x)",
    "sees its place": "import os; print(os.getcwd(), os.getsid(0) == os.getpid())",
    "sees its environment": "import os; print({**os.environ, 'LC_CTYPE': ''})",
    "cannot print": "import os; print(1); os.close(1)",
    "names temporary files": "import tempfile; print(tempfile.gettempdir())",
}


def both(arguments, **options) -> tuple:
    """The outcome of a forked process and of a real one.

    A shell lets what it starts in the background ignore Ctrl-C, and processes inherit that.
    """
    real = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )
    return forked.run(arguments, **options), real


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_runs_as_in_a_real_process(name, tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/a:/b", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAMS[name], "one", "--two"]
    found, real = both(command, env=environment, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (real.returncode, real.stdout), found.stderr
    assert found.stderr == real.stderr


def test_a_traceback_is_printed(tmp_path):
    found, real = both([sys.executable, "-c", "def f(): 1 / 0\nf()"])
    assert found.returncode == real.returncode == 1
    assert found.stderr == real.stderr


@pytest.mark.parametrize("form", ["script", "module", "console script"])
def test_a_file_runs_as_in_a_real_process(form, tmp_path):
    script = tmp_path / "folder" / "program.py"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys, beside\n"
        "print(__name__, __file__, sys.argv, sys.path[0], beside.x)\n"
    )
    script.chmod(0o755)
    (script.parent / "beside.py").write_text("x = 7")
    command = {
        "script": [sys.executable, "folder/program.py"],
        "module": [sys.executable, "-m", "program"],
        "console script": [str(script)],
    }[form]
    cwd = script.parent if form == "module" else tmp_path
    found, real = both([*command, "--flag"], cwd=cwd)
    assert real.returncode == 0 and found.stderr == real.stderr == ""
    assert found.stdout == real.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_it(number):
    # Python may get a signal just before signal.pause, which then never returns.
    code = "import time\nprint('ready', flush=True)\nwhile True:\n    time.sleep(0.1)"
    for group in (False, True):
        process = forked.start([sys.executable, "-c", code])
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == process.poll() == -number
        assert ("KeyboardInterrupt" in stderr) == (number == signal.SIGINT)


def test_one_that_takes_too_long_is_killed(tmp_path):
    code = "import pathlib, time; time.sleep(1.5); pathlib.Path('end').touch()"
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", code], cwd=tmp_path, timeout=0.3)
    forked.run([sys.executable, "-c", "import time; time.sleep(2)"])
    assert not list(tmp_path.iterdir())


def test_libraries_that_read_the_environment_are_imported_in_it(tmp_path):
    code = "from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE as offline\n"
    code += "print(HF_HOME, offline)"
    first = os.environ | {"HF_HOME": str(tmp_path / "a"), "HF_HUB_OFFLINE": "1"}
    second = os.environ | {"HF_HOME": str(tmp_path / "b"), "HF_HUB_OFFLINE": "0"}
    forked.warm(second)
    for environment, expected in ((first, "a True"), (second, "b False"), (first, "a True")):
        found = forked.run([sys.executable, "-c", code], env=environment)
        assert found.stdout == f"{tmp_path}/{expected}\n", found.stderr


def test_it_starts_with_libraries_but_without_this_package():
    code = "import sys; print({'torch', 'diffusers', 'hf_latent', 'pytest'} & set(sys.modules))"
    assert "hf_latent" not in os.environ
    found = forked.run([sys.executable, "-c", code]).stdout
    assert eval(found) == {"torch", "diffusers"}


@pytest.mark.parametrize("threads", ["1", "2"])
def test_torch_has_the_threads_that_are_asked_for_and_works(threads):
    code = (
        "import torch; torch.rand(512, 512) @ torch.rand(512, 512); print(torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    found = forked.run([sys.executable, "-c", code], env=environment, timeout=60)
    assert found.stdout == f"{threads}\n", found.stderr
