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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hf_latent
from hf_latent.cli import main

ROOT = Path(__file__).parents[1]
EXTRAS = ("completion", "features", "heif", "science")  # that CI installs, for use


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


@pytest.mark.slow
def test_the_first_image_imports_no_library_of_data_or_measures(tmp_path):
    # A new process, because a forked one has these libraries already.
    code = "import sys; from hf_latent.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    flags = ["--num_images", "1", "--num_inference_steps", "1", "--output"]
    imported = run("-c", code, "generate", *flags, str(tmp_path / "image.png")).split()
    assert "diffusers" in imported
    unused = {"datasets", "pyarrow", "pandas", "torchmetrics", "matplotlib", "sklearn"}
    assert not unused & {*imported}


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


def test_the_wheel_has_every_file_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    others = {x for x in (ROOT / "hf_latent").rglob("*") if x.suffix not in (".py", ".pyc")}
    assert {x for x in others if x.is_file()} == {x for x in packed if x.is_file()} != set()


def requirements(*extras: str) -> dict[str, Requirement]:
    """The requirements in pyproject.toml, by name, with those of extras of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, found = [*project["dependencies"]], {}
    for extra in extras:
        waiting += project["optional-dependencies"][extra]
    while waiting:
        needed = Requirement(waiting.pop())
        if needed.name == "hf-latent":
            for extra in needed.extras:
                waiting += project["optional-dependencies"][extra]
        else:
            found[canonicalize_name(needed.name)] = needed
    return found


def imported_packages(folder: str) -> set[str]:
    """The names of installed packages that the files of a folder import."""
    modules, found = set(), importlib.metadata.packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules} - {"hf_latent"}
    return {canonicalize_name(found[top][0]) for top in tops if top in found}


def test_all_that_is_imported_is_declared():
    declared = requirements(*EXTRAS, "lpips", "inception", "page").keys()
    assert {"diffusers", "jinja2", "pyarrow"} <= imported_packages("hf_latent") <= declared
    for folder in ("train_scripts", "tests", "docs"):
        assert imported_packages(folder) <= requirements("test").keys(), folder


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()[1:]
    tested = {canonicalize_name(x.name): x.specifier for x in map(Requirement, lines)}
    for name, requirement in requirements(*EXTRAS).items():
        (lowest,) = (x.version for x in requirement.specifier)
        (version,) = (x.version for x in tested[name])
        assert name == "torch" or Version(version) == Version(lowest), name
