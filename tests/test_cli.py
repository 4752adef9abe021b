import subprocess
import sys

import pytest

from hf_latent.cli import COMMANDS, main


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys; from hf_latent.cli import main; main(['--help']); "
        "print(sorted({'torch', 'diffusers', 'jsonargparse'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert all(f"  {name} " in process.stdout for name in COMMANDS)
    assert process.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: hf-latent {name}" in capsys.readouterr().out


def test_an_unknown_command_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quickstrat"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: no command 'quickstrat': use one of "
        "quickstart, generate, inspect, evaluate, sweep, export, push, bench\n"
    )
