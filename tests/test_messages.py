"""Messages: which stream gets them, which process prints them, and a closed output."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tqdm import tqdm

from hf_latent import messages
from hf_latent.command import parse_config
from hf_latent.experiments.generate import GenerateConfig
from hf_latent.messages import progress_bar, set_verbosity

logger = logging.getLogger("hf_latent.tests")


@pytest.fixture(autouse=True)
def _default_verbosity():
    yield
    set_verbosity("info")


def test_warnings_go_to_stderr_and_other_messages_to_stdout(capsys):
    logger.info("the model is in runs/a")
    logger.warning("3 images are left out")
    logger.debug("not printed by default")
    printed = capsys.readouterr()
    assert printed.out == "the model is in runs/a\n"
    assert printed.err == "warning: 3 images are left out\n"


@pytest.mark.parametrize(
    ("verbosity", "printed"),
    [("debug", "abcd"), ("info", "bcd"), ("warning", "cd"), ("error", "d")],
)
def test_verbosity_is_a_flag_of_every_command(capsys, verbosity, printed):
    parse_config(GenerateConfig, ["--verbosity", verbosity])
    logger.debug("a")
    logger.info("b")
    logger.warning("c")
    logger.error("d")
    captured = capsys.readouterr()
    both = captured.out + captured.err.replace("warning: ", "").replace("error: ", "")
    assert both == "".join(f"{letter}\n" for letter in printed)


def test_only_the_first_process_of_a_launch_prints_what_is_no_error(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logger.warning("not printed")
    logger.error("printed by all")
    monkeypatch.setenv("RANK", "0")
    logger.warning("printed")
    assert capsys.readouterr().err == "error: printed by all\nwarning: printed\n"


def test_a_message_does_not_share_a_line_with_a_progress_bar(capsys):
    with tqdm(total=2, file=sys.stderr) as bar:
        bar.update()
        logger.info("step 1: 20.0 dB")
        logger.warning("step 1 is skipped")
    printed = capsys.readouterr()
    assert printed.out == "step 1: 20.0 dB\n"
    assert "\rwarning: step 1 is skipped\n" in printed.err.replace(" \r", "\r")


def test_a_closed_output_drops_messages_and_nothing_else():
    program = (
        "import logging, sys, hf_latent.command\n"
        "logger = logging.getLogger('hf_latent.tests')\n"
        "sys.stdin.read()\n"
        "for _ in range(3):\n"
        "    logger.info('nobody reads this')\n"
        "print('finished', file=sys.stderr)\n"
        "sys.stdout = None\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.communicate("")[1].splitlines()[0] == "finished"


class Clock:
    """Stands for tqdm's clock: only the test moves it."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def work(clock, steps: int) -> None:
    """Work for a second a step, and say something every 100 steps."""
    with progress_bar(total=steps, desc="denoiser") as bar:
        for step in range(1, steps + 1):
            clock.seconds += 1
            bar.set_postfix({"loss": step}, refresh=False)
            bar.update()
            if step % 100 == 0:
                logger.info(f"step {step}")


def test_progress_off_a_terminal_is_a_line_a_minute(capsys, clock):
    work(clock, 250)
    printed = capsys.readouterr()
    assert "\r" not in printed.err
    lines = printed.err.splitlines()
    assert [line.partition("|")[0] for line in lines] == [
        f"denoiser: {percent:3d}%" for percent in (24, 48, 72, 96, 100)
    ]
    assert "| 60/250 [01:00<03:10,  1.00it/s, loss=60]" in lines[0]
    assert printed.out == "step 100\nstep 200\n"


def test_work_of_less_than_a_minute_prints_nothing_off_a_terminal(capsys, clock):
    work(clock, 59)
    assert capsys.readouterr().err == ""


def test_every_bar_of_the_package_is_made_by_progress_bar():
    for path in Path(messages.__file__).parent.rglob("*.py"):
        calls = re.findall(r"(?<!def )\b(?:tqdm|trange)\((?!disable=True)", path.read_text())
        assert not calls or path.name == "messages.py", path


@pytest.mark.parametrize("is_terminal", [True, False])
def test_on_a_terminal_a_bar_is_drawn_again_and_messages_stay_above_it(tmp_path, is_terminal):
    program = (
        "import logging\n"
        "from hf_latent.messages import progress_bar, start_messages\n"
        "start_messages()\n"
        "with progress_bar(total=2, desc='denoiser') as bar:\n"
        "    bar.update()\n"
        "    logging.getLogger('hf_latent').warning('step 1: dead')\n"
        "    bar.update()\n"
    )
    reading, writing = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        termios.tcsetwinsize(writing, (24, 80))
    process = subprocess.run([sys.executable, "-c", program], stderr=writing)
    assert process.returncode == 0
    os.close(writing)
    printed = b""
    try:
        while part := os.read(reading, 1000):
            printed += part
    except OSError:  # the end of a terminal
        pass
    os.close(reading)
    lines = [x.split("\r") for x in printed.decode().replace("\r\n", "\n").strip().split("\n")]
    assert lines[0][-1] == "warning: step 1: dead"
    assert ("denoiser: 100%" in str(lines[-1])) == is_terminal
