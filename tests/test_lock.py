"""Two runs of one folder: the second one is refused, whichever commands they are."""

import os
import re
import signal
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest

from hf_latent.cli import main
from hf_latent.errors import UserError
from hf_latent.lock import locks_output
from tests.test_bad_input import GOOD


@dataclass
class Config:
    output_dir: str


@dataclass
class FileConfig:
    output: str


def hold(path: Path, kind=Config):
    """Start a process that holds the lock of a path, until it is killed."""
    here, there = get_context("fork").Pipe()

    @locks_output
    def command(config):
        there.send("held")
        signal.pause()

    process = get_context("fork").Process(target=command, args=(kind(str(path)),), daemon=True)
    process.start()
    assert here.recv() == "held"
    return process


@locks_output
def returned(config, *args, **kwargs):
    return args, kwargs


@pytest.mark.parametrize("command", [name for name, flags in GOOD.items() if "OUT" in flags])
def test_every_command_that_writes_holds_the_lock(tmp_path, capsys, command):
    process = hold(tmp_path / "out")
    flags = re.sub(r"OUT(\.\w+)?", str(tmp_path / "out"), GOOD[command])
    with pytest.raises(SystemExit):
        main([*command.split(), *flags.split()])
    process.kill()  # before what may fail: pytest would wait for it
    assert "error: another run is writing to" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Config, FileConfig])
def test_the_second_run_is_refused_until_the_first_is_dead(tmp_path, kind):
    path = tmp_path / "run"
    process = hold(path, kind)
    with pytest.raises(UserError, match=f"^another run is writing to {path}: ") as raised:
        returned(kind(str(path)))
    assert "\n" not in str(raised.value)
    process.kill()
    process.join()
    assert returned(kind(str(path)), 1, b=2) == ((1,), {"b": 2})
    assert list(tmp_path.iterdir()) == []


def test_the_same_folder_by_another_name_is_locked_too(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    process = hold(tmp_path / "run")
    for name in ("link", "run", "./run/", "run/../run"):
        with pytest.raises(UserError, match="another run"):
            returned(Config(name))
    returned(Config("run2"))
    returned(Config("run/model"))
    process.kill()


def test_a_reading_process_that_outlives_a_killed_run_holds_no_lock(tmp_path):
    here, there = get_context("fork").Pipe()

    @locks_output
    def command(config):
        if (reader := os.fork()) == 0:
            signal.pause()
        there.send(reader)
        signal.pause()

    process = get_context("fork").Process(target=command, args=(Config(str(tmp_path / "run")),))
    process.start()
    reader = here.recv()
    process.kill()
    process.join()
    returned(Config(str(tmp_path / "run")))
    os.kill(reader, signal.SIGKILL)


def test_a_refused_run_leaves_no_folder(tmp_path):
    @locks_output
    def refused(config):
        raise UserError("no")

    with pytest.raises(UserError, match=r"^no$"):
        refused(Config(str(tmp_path / "a" / "b" / "run")))
    assert list(tmp_path.iterdir()) == []


def test_other_processes_of_a_launch_share_the_lock_of_the_first(tmp_path, monkeypatch):
    process = hold(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    returned(Config(str(tmp_path / "run")))
    process.kill()


def test_a_place_that_cannot_be_written_is_left_to_the_commands_own_check(tmp_path):
    (tmp_path / "file").write_text("")
    assert returned(Config(str(tmp_path / "file" / "run"))) == ((), {})
    assert returned(FileConfig(str(tmp_path / "nowhere" / "grid.png"))) == ((), {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
