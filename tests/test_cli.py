import gc
import subprocess
import sys

import pytest

from hf_latent.cli import COMMANDS, importing, main


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


def test_imports_leave_the_search_for_garbage_as_it_was():
    before = gc.get_freeze_count()
    try:
        for enabled in (True, False):
            (gc.enable if enabled else gc.disable)()
            with importing():
                assert not gc.isenabled()
            assert gc.isenabled() == enabled
            with pytest.raises(ImportError), importing():
                raise ImportError
            assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > before
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("arguments", ["", "['inspect', '--help']"])
def test_only_a_process_of_the_commands_own_is_frozen(arguments):
    code = (
        "import gc, sys; from hf_latent.cli import main\n"
        "sys.argv = ['hf-latent', 'inspect', '--help']\n"
        f"try: main({arguments})\n"
        "except SystemExit: print(gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == f"True {not arguments}", process.stderr


def test_an_unknown_command_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quickstrat"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: no command 'quickstrat': use one of "
        "quickstart, generate, inspect, evaluate, sweep, export, push, bench\n"
    )
