"""How commands end: closed outputs, Ctrl-C, lack of memory, and values that nothing can mean."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hf_latent.command import Settings, run_command
from hf_latent.experiments.generate import GenerateConfig, generate
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from tests import forked

ROOT = Path(__file__).parents[1]
BIG = str(10**22)
TRAINING = (AutoencoderConfig, train_autoencoder, "--output_dir", "run", "--max_train_steps", "1")
ENCODING = (EncodeConfig, encode_latents, "--vae", "vae", "--output_dir", "cache")
GENERATING = (GenerateConfig, generate)


@dataclass(frozen=True, kw_only=True)
class Nothing(Settings):
    """Do something."""

    what: str = "x"


def run(config_class, command, *arguments):
    with pytest.raises(SystemExit) as stop:
        run_command(config_class, command, [str(x) for x in arguments])
    return stop.value.code


RECIPES = {
    "keys of jsonargparse": "__path__: x\noutput_dir: run\n",
    "keys inside a value": "output_dir:\n  __path__: x\n",
    "deep lists": "output_dir: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "".join(" " * i + "a:\n" for i in range(1500)),
    "an alias of itself": "data: &a [*a]\noutput_dir: run\n",
    "a null byte": 'output_dir: "a\\0b"\n',
    "an empty path": 'output_dir: ""\n',
}
CASES = {
    **{f"size {name}": (*TRAINING, f"--{name}", BIG) for name in ("train_batch_size", "seed")},
    "size of layers": (*TRAINING, "--block_out_channels", f"[{BIG}]"),
    "size of images": (*TRAINING, "--resolution", f"{BIG},{BIG}"),
    "size of a side": (*TRAINING, "--resolution", "100000000"),
    "size of latents in memory": (*TRAINING, "--latent_channels", str(10**12)),
    "size of a picture": (*GENERATING, "--num_images", str(10**13)),
    "deep value": (*TRAINING, "--data", "[" * 3000),
    **{
        f"empty {name}": (*command, f"--{name}", value)
        for name, command, value in (
            ("output_dir", TRAINING, ""),
            ("output_dir", ENCODING, " "),
            ("data", TRAINING, ""),
            ("vae", ENCODING, ""),
            ("resume_from_checkpoint", TRAINING, ""),
            ("output", GENERATING, ""),
            ("model", GENERATING, "\t"),
        )
    },
    "a name that is no UTF-8": (*TRAINING, "--data", os.fsdecode(b"photos-\xff")),
    **{
        f"a picture {name}": (*GENERATING, "--output", name)
        for name in ("x", "x.", "x.hdf", "x.xbm", "x.blp", "x.mpeg", "x.png.", ".")
    },
}


def assert_one_line_and_nothing_else(status, capsys, folder: Path, before: list[Path]):
    assert status == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_that_nothing_can_mean_are_one_line(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_one_line_and_nothing_else(run(*case), capsys, tmp_path, [])


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_recipes_that_nothing_can_mean_are_one_line(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    status = run(AutoencoderConfig, train_autoencoder, "--config", "recipe.yaml")
    assert_one_line_and_nothing_else(status, capsys, tmp_path, before)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
@pytest.mark.parametrize("module", ["autoencoder", "latents.encode"])
def test_a_launcher_that_sets_no_number_is_one_line(name, module, tmp_path):
    # In a process of its own: Accelerate keeps what it found.
    code = (
        "import sys; from hf_latent.command import run_command\n"
        f"from hf_latent.training.{module} import *\n"
        f"from hf_latent.training.{'latents.config' if 'latents' in module else module} import *\n"
        "command = (AutoencoderConfig, train_autoencoder) if 'AutoencoderConfig' in globals() "
        "else (EncodeConfig, encode_latents)\n"
        "run_command(*command, sys.argv[1:])"
    )
    flags = ["--output_dir", "run", *(["--vae", "v"] if "latents" in module else [])]
    process = forked.run(
        [sys.executable, "-c", code, *flags],
        env=os.environ | {name: "abc", "ACCELERATE_USE_CPU": "1"},
        cwd=tmp_path,
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: Accelerate cannot start (invalid literal")
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (MemoryError("no"), 2, "error: not enough memory, choose smaller sizes (no)\n"),
        (OSError(28, "No space left", "a"), 2, "error: [Errno 28] No space left: 'a'\n"),
    ],
)
def test_each_end_is_one_line(error, status, line, capsys):
    def fail(config):
        raise error

    assert run(Nothing, fail) == status
    assert capsys.readouterr().err == line


def test_torchs_lack_of_memory_is_one_line(capsys):
    assert run(Nothing, lambda config: torch.empty(2**50)) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory")


def test_other_errors_keep_their_traceback():
    def fail(config):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(Nothing, fail, [])


PRINTING = """
import logging, sys, time
from dataclasses import dataclass
from hf_latent.command import Settings, run_command
from hf_latent.messages import progress_bar
from tqdm import tqdm
logger = logging.getLogger("hf_latent.tests")

@dataclass(frozen=True, kw_only=True)
class Nothing(Settings):
    '''Print.'''
    path: str

def work(config):
    for step in tqdm(range(300), mininterval=0):
        logger.info("step %d" % step)
        logger.warning("warning %d" % step)
        print("printed " * 1000)
        time.sleep(0.001)
    open(config.path, "w").write("done")

run_command(Nothing, work)
"""


@pytest.mark.parametrize("redirect", ["| head -1", "2>&1 | head -1", ">&- 2>&-", "> /dev/full"])
def test_a_closed_output_does_not_end_a_command(tmp_path, redirect):
    words = f'set -o pipefail; {sys.executable} -c "$CODE" --path done {redirect}'
    process = subprocess.run(
        ["bash", "-c", words],
        cwd=tmp_path,
        env=os.environ | {"CODE": PRINTING, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "done").read_text() == "done"
    assert "Error" not in process.stderr and "Exception" not in process.stderr


@pytest.mark.parametrize("arguments", ["--help", "generate --help"])
def test_help_ends_quietly_when_its_reader_is_gone(arguments):
    words = f"set -o pipefail; {sys.executable} -m hf_latent {arguments} | true"
    process = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


@pytest.mark.parametrize("words", [["generate"], ["train_scripts/train_unet.py", "--vae", "x"]])
def test_ctrl_c_while_importing_is_one_line(words):
    # Modules written in C make another error of KeyboardInterrupt, or lose it.
    code = (
        "import sys, runpy, time; sys.path.insert(0, '.')\n"
        "import hf_latent.cli as cli\n"
        "def import_module(name):\n"
        "    print('importing', flush=True)\n"
        "    try: time.sleep(60)\n"
        "    except BaseException: raise ImportError('cannot load module twice')\n"
        "cli.import_module = import_module\n"
        "script = sys.argv.pop(1) if sys.argv[1].endswith('.py') else None\n"
        "runpy.run_path(script, run_name='__main__') if script else cli.main()"
    )
    process = forked.start([sys.executable, "-c", code, *words], cwd=ROOT)
    assert process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == "error: interrupted\n"
