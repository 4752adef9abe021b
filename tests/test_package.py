"""What a person meets first: the version, the public names, `python -m hf_latent`."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import hf_latent
from hf_latent.cli import main

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path = ROOT) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=cwd
    )
    return process.stdout


def test_the_version_is_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", hf_latent.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hf_latent.__version__"}


def test_the_installed_version_is_that_of_the_source():
    assert importlib.metadata.version("hf-latent") == hf_latent.__version__


def test_version_flag(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"hf-latent {hf_latent.__version__}\n"


def test_a_checkout_that_is_not_installed_has_its_version():
    # -S: without site-packages, so without the installed package's metadata.
    assert run("-S", "-m", "hf_latent", "--version") == f"hf-latent {hf_latent.__version__}\n"


def test_python_m_is_the_command():
    assert run("-m", "hf_latent").startswith("usage: hf-latent COMMAND")
    process = subprocess.run([sys.executable, "-m", "hf_latent", "inspekt"], capture_output=True)
    assert process.returncode == 2


def test_help_takes_less_than_half_a_second():
    seconds = []
    for _ in range(3):  # the fastest: other programs may run beside the tests
        start = time.perf_counter()
        run("-m", "hf_latent", "--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_public_names_are_listed_before_they_are_imported():
    code = "import sys, hf_latent; print(dir(hf_latent)); print('torch' in sys.modules)"
    names, torch_is_imported = run("-c", code).splitlines()
    assert ast.literal_eval(names) == sorted(hf_latent.__all__)
    assert torch_is_imported == "False"


@pytest.mark.parametrize("name", sorted(hf_latent.__all__))
def test_every_public_name_can_be_imported(name):
    value = getattr(hf_latent, name)
    assert value is not None
    assert name == "__version__" or value.__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(ImportError, match="cannot import name 'LatentDifusion'"):
        exec("from hf_latent import LatentDifusion")


def test_type_checkers_see_the_public_names():
    tree = ast.parse((ROOT / "hf_latent" / "__init__.py").read_text())
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in branch.body if isinstance(node, ast.ImportFrom)]
    assert {x.name: node.module for node in imports for x in node.names} == hf_latent._MODULES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["hf_latent"] == ["py.typed"]
    assert (ROOT / "hf_latent" / "py.typed").exists()
