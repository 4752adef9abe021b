"""Messages: which stream gets them, which process prints them, and a closed output."""

import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from hf_latent.command import parse_config
from hf_latent.experiments.generate import GenerateConfig
from hf_latent.messages import set_verbosity

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
