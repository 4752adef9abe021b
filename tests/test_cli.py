import gc
import re
import subprocess
import sys

import pytest

from hf_latent import AutoencoderConfig, DenoiserConfig
from hf_latent.cli import COMMANDS, importing, main, usage
from hf_latent.command import parse_config
from tests import forked


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys; from hf_latent.cli import main; main(['--help']); "
        "print(sorted({'torch', 'diffusers', 'jsonargparse'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert all(f"  {name} " in process.stdout for name in COMMANDS)
    assert process.stdout.splitlines()[-1] == "[]"


def check_help(text):
    """Check that a help text fits 80 columns, and explains each flag without Python's types."""
    assert max(map(len, text.splitlines())) <= 80
    assert not re.findall(r"Optional|Union|Literal|Positive|NonNegative|default: (null|None)", text)
    for flag in re.split(r"\n  (?=-)", text.partition("options:")[2])[1:]:
        assert re.fullmatch(r"-\S.*?(  +|\n +)\w.*", flag.strip(), re.DOTALL), flag


def test_help_fits_80_columns():
    assert max(map(len, usage().splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_fits_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: hf-latent {name} ")
    check_help(text)


@pytest.mark.parametrize("config_class", [AutoencoderConfig, DenoiserConfig])
def test_help_of_the_trainings_fits_80_columns(config_class, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_config(config_class, ["--help"])
    check_help(capsys.readouterr().out)


def test_importing_leaves_garbage_collection_as_it_was():
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
def test_only_the_commands_own_process_is_frozen(arguments):
    code = (
        "import gc, sys; from hf_latent.cli import main\n"
        "gc.unfreeze()  # what the process was forked with\n"
        "sys.argv = ['hf-latent', 'inspect', '--help']\n"
        f"try: main({arguments})\n"
        "except SystemExit: print(gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    process = forked.run([sys.executable, "-c", code])
    assert process.stdout.splitlines()[-1] == f"True {not arguments}", process.stderr


def test_an_unknown_command_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quickstrat"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: no command 'quickstrat': use one of "
        "quickstart, lesson, train-autoencoder, encode, train-denoiser, distill, synthesize-ema, "
        "report, generate, inspect, evaluate, sweep, export, push, doctor, bench loop, "
        "bench cache, bench sampler, bench space, bench start\n"
    )


def test_bash_completes_commands_flags_and_values(tmp_path, capsys):
    main(["--print_completion", "bash"])
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "photos").mkdir()

    def completions(line: str) -> set[str]:
        words = line.split(" ")
        code = (
            f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); "
            f"COMP_CWORD={len(words) - 1}; $(complete -p hf-latent | sed 's/.*-F //; s/ .*//'); "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        found = subprocess.run(
            ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return set(found.stdout.split())

    assert {"train-autoencoder", "train-denoiser"} <= completions("hf-latent train-")
    latents = {"--latents", "--latents_on_device", "--latents_revision"}
    assert completions("hf-latent train-denoiser --laten") == latents
    assert completions("hf-latent bench ") >= {"cache", "loop", "sampler", "space", "start"}
    assert completions("hf-latent inspect --resize_mode ") == {"crop", "pad"}
    assert completions("hf-latent quickstart --train_vae ") == {"true", "false"}
    assert completions("hf-latent inspect --data ph") == {"photos"}


def test_completion_for_no_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print_completion", "cmd"])
    assert stop.value.code == 2
    assert "must be one of bash" in capsys.readouterr().err
