"""The architecture, checked by reading the imports."""

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hf_latent.pipeline.saved_files import MODULES

PACKAGE = Path(__file__).parents[1] / "hf_latent"
STEPS = ("encode", "add_noise", "denoise", "decode")
PARTS = ("autoencoders", "conditions", "samplers", "hub_format", "weights")
PARTS += ("image_to_image", "prompts", "saved_files")
TRAVELLING = ("pipeline", *PARTS, *STEPS)  # saved with every model
# Each layer may import from those before it, and from itself.
LAYERS = [
    ("errors", "messages", "allocator", "command_output", "command", "output", "lock"),
    ("pipeline",),
    ("models",),
    ("data",),
    ("evaluation",),
    ("hub",),
    ("training",),
    ("experiments",),
    ("cli", "completion"),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def imported_modules(path: Path) -> list[str]:
    """Return the names of imported modules; relative ones start with a dot."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append("." * node.level + (node.module or ""))
    return modules


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_import_only_from_their_left(path):
    for module in imported_modules(path):
        if module.startswith("hf_latent."):
            assert RANK[module.split(".")[1]] <= RANK[room(path)], module


@pytest.mark.parametrize("name", STEPS)
def test_steps_import_torch_diffusers_the_standard_library_and_the_table_of_kinds(name):
    for module in imported_modules(PACKAGE / "pipeline" / f"{name}.py"):
        top = module.split(".")[0]
        known = module == ".autoencoders" or top in {"torch", "diffusers"}
        assert known or top in sys.stdlib_module_names, module


def test_the_pipeline_imports_only_saved_files_and_relatively():
    modules = imported_modules(PACKAGE / "pipeline" / "pipeline.py")
    assert {m for m in modules if m.startswith(".")} == {f".{name}" for name in TRAVELLING[1:]}
    for name in TRAVELLING:
        for module in imported_modules(PACKAGE / "pipeline" / f"{name}.py"):
            top = module.split(".")[0]
            # Libraries that diffusers itself needs; that of text encoders only to load one.
            allowed = {"", "torch", "diffusers", "huggingface_hub", "numpy", "PIL"}
            allowed |= {"transformers"} if name == "weights" else set()
            assert top in allowed or top in sys.stdlib_module_names, module


def test_the_saved_files_ask_an_installed_package_for_three_functions_only():
    asked = set()
    for name in TRAVELLING:
        path = PACKAGE / "pipeline" / f"{name}.py"
        calls = [x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Call)]
        names = [ast.unparse(call.func) for call in calls]
        imports = [x for x in names if "import" in x]
        assert imports == (["importlib.import_module"] if name == "hub_format" else []), name
        for call in (call for call, x in zip(calls, names, strict=True) if x == "_installed"):
            asked.add(tuple(argument.value for argument in call.args))
    assert asked == {
        ("models.load", "find_model"),
        ("models.load", "find_component"),
        ("hub.card.render", "write_model_card"),
    }
    for module, name in asked:
        assert callable(getattr(import_module(f"hf_latent.{module}"), name))


def test_the_saved_files_are_those_that_the_pipeline_imports():
    assert set(MODULES) == set(TRAVELLING)


def test_accelerate_is_imported_in_training_and_experiments_only():
    users = {
        room(path)
        for path in FILES
        if any(m.split(".")[0] == "accelerate" for m in imported_modules(path))
    }
    assert users <= {"training", "experiments"}


def test_torchvision_is_never_imported():
    for path in FILES:
        assert all(m.split(".")[0] != "torchvision" for m in imported_modules(path))


def test_importing_the_package_imports_nothing_heavy():
    import subprocess

    code = "import sys, hf_latent, hf_latent.cli; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "False", output.stderr


def test_every_file_has_a_docstring_and_at_most_400_lines():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert len(path.read_text().splitlines()) <= 400, path
