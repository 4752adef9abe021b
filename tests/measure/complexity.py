"""Measure the package: sizes, calls on three paths, and files that one change would touch.

    python tests/measure/complexity.py [--tree DIR] [--output FILE]

It prints a Markdown table. `--tree` is a checkout, by default the one of this file.

`call_paths.py` records the paths with `sys.setprofile`, in the main thread:

- A *call* is a frame of the package that is entered. Comprehensions, lambdas and generator
  expressions are frames of their own (Python before 3.12 enters one for each list comprehension
  too). A resumed generator counts only once. *Functions* are the calls without these frames.
- A *change of file* is a call in another file than the call before it.
- *label to pixels* begins with `pipe("Coat")` on the released fashion-mnist, and ends when the
  denoiser is entered.
- *image to loss* begins when the second step of a training asks for its batch, and ends when
  `Accelerator.backward` gets that step's loss. A batch is one image.

Other figures:

- A *signature that takes whole settings* is a function with a parameter of a dataclass `...Config`;
  training settings are `TrainingConfig` and its subclasses.
- A *file that handles labels* has the name `class_labels`, or the denoiser's `num_class_embeds`, in
  its code, not only in docstrings and comments. A new kind of condition would change it too. *On
  the way to the denoiser*: without the folders evaluation, experiments and hub.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABEL_NAMES = {"class_labels", "num_class_embeds"}
SIDE_FOLDERS = ("evaluation", "experiments", "hub")


def python_files(package: Path) -> list[Path]:
    """Return the Python files of a package."""
    return sorted(package.rglob("*.py"))


def measure_sizes(package: Path) -> dict[str, Any]:
    """Count lines, files and entries, and name the folder with the most Python files."""
    files = python_files(package)
    folder, most = Counter(path.parent for path in files).most_common(1)[0]
    return {
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
        "files": len(files),
        "entries": sum(path.name != "__pycache__" for path in package.iterdir()),
        "fullest_folder": str(folder.relative_to(package.parent)),
        "files_in_fullest_folder": most,
    }


def class_bases(trees: list[ast.Module]) -> dict[str, set[str]]:
    """Return the names of the bases of each class."""
    return {
        node.name: {ast.unparse(base) for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def taken_types(tree: ast.Module) -> list[set[str]]:
    """Return the names in the annotations of each function's parameters."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotations = [x.annotation for x in arguments if x.annotation is not None]
            nodes = [x for annotation in annotations for x in ast.walk(annotation)]
            found.append({x.id for x in nodes if isinstance(x, ast.Name)})
    return found


def measure_settings(package: Path) -> dict[str, int]:
    """Count signatures that take whole settings, and the files that they are in."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in python_files(package)]
    bases = class_bases(trees)
    configs = {name for name in bases if name.endswith("Config")}
    training = {"TrainingConfig"}
    while more := {name for name in configs if bases[name] & training} - training:
        training |= more
    taken = [taken_types(tree) for tree in trees]
    whole = [sum(bool(names & configs) for names in functions) for functions in taken]
    of_training = [sum(bool(names & training) for names in functions) for functions in taken]
    return {
        "signatures_with_settings": sum(whole),
        "files_of_those": sum(map(bool, whole)),
        "signatures_with_training_settings": sum(of_training),
        "files_of_training_signatures": sum(map(bool, of_training)),
    }


def named(tree: ast.Module) -> Iterator[str]:
    """Yield the identifiers and the whole strings of a file's code."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield name
            case ast.alias(name=name):
                yield name.split(".")[-1]


def label_files(package: Path) -> list[str]:
    """Return the files of a package that handle labels."""
    return [
        path.relative_to(package).as_posix()
        for path in python_files(package)
        if LABEL_NAMES & set(named(ast.parse(path.read_text(encoding="utf-8"))))
    ]


def record_paths(tree: Path) -> dict[str, Any]:
    """Return the output of `call_paths.py`, run in a process that imports a checkout's package."""
    environment = {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("call_paths.py"))],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def measure(tree: Path) -> dict[str, Any]:
    """Return all figures of a checkout."""
    package = tree / "hf_latent"
    labels = label_files(package)
    on_the_way = [name for name in labels if name.split("/")[0] not in SIDE_FOLDERS]
    return {
        **measure_sizes(package),
        **measure_settings(package),
        "files_that_handle_labels": len(labels),
        "of_those_on_the_way_to_the_denoiser": len(on_the_way),
        **record_paths(tree),
        "label_files": labels,
    }


def render(figures: dict[str, Any]) -> str:
    """Return the figures as a Markdown table, without the lists."""
    rows = ["| figure | value |", "|---|---|"]
    for name, value in figures.items():
        parts = value if isinstance(value, dict) else {"": value}
        for part, figure in parts.items():
            if not isinstance(figure, list):
                text = f"{figure:,}" if isinstance(figure, int) else figure
                rows.append(f"| {name} {part}".replace("_", " ").rstrip() + f" | {text} |")
    return "\n".join(rows)


def main() -> None:
    """Measure a checkout."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--output", type=Path, help="write all figures there, as json")
    arguments = parser.parse_args()
    figures = measure(arguments.tree.resolve())
    print(render(figures))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
