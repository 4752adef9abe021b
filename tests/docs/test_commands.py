"""Every command and every Python block of the README and of the site runs, with short settings."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from make_micrographs import MicrographsConfig, make_micrographs
from tests import forked
from tests.docs.pages import ROOT, Block, code_blocks, read
from tests.hub.loopback_hub import LoopbackHub

BIN = Path(sys.executable).parent
TRAINING = "--max_train_steps 2 --train_batch_size 4 --max_validation_samples 4 --preset tiny"
# Commands with a time limit go by a clock that every look at it moves on, on any machine alike.
# They have narrower models, fewer built-in images, shorter vectors, and draw smaller pictures.
TICKING = f"""
import itertools, runpy, sys, time
sys.path.append({str(ROOT)!r})
from hf_latent.data.images import sources
from hf_latent.evaluation.features import extractors
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images, small_trainings
looks, seconds = itertools.count(), float(sys.argv[1])
time.perf_counter = lambda: next(looks) * seconds
sys.argv = sys.argv[2:]
extractors.load_feature_extractor = lambda name: ShortVectors()
with small_trainings() as patch:
    patch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
SECONDS_A_LOOK = {"quickstart": "2", "sweep": "0.2", "evaluate": "1", "inspect": "1"}
SECONDS_A_LOOK |= {"train_vae.py": "1", "train_unet.py": "0.01", "lesson": "0.25"}
SHORT = {
    "quickstart": "--max_minutes 2 --evaluation_images 20 --num_inference_steps 2",
    "lesson": "--train_minutes 1 --resolutions [64]",
    "generate": "--num_inference_steps 2",
    "inspect": "--max_images 4",
    "evaluate": "--num_images 10 --num_inference_steps 1 --cache_dir vectors "
    "--max_train_samples 20",
    "sweep": "--max_minutes 2.75 --factors 4 --latent_channels 4 --resolution 32 "
    "--num_images 10 --num_inference_steps 1",
    "encode_latents.py": "",
    "synthesize_ema.py": "",
    "distill": "--num_inference_steps 2 --max_train_steps 1 --train_batch_size 4 "
    "--max_validation_samples 2",
    "report": "",
    "export": "",
    "push": "",
    "train_vae.py": TRAINING,
    "train_unet.py": TRAINING,
}
SHORT_PYTHON = {"10_000": "2", '"resolution": 64': '"resolution": 32'}
INSTALLING = ("python3 -m venv", "pip install")


def is_recipe(command: str) -> bool:
    return "train_scripts/recipes" in command


def blocks_to_run(recipes: bool) -> list[Block]:
    """Return each command line and each Python block once, in the order of the pages.

    The quickstart comes first, since the pages draw from its model.
    """
    found = [Block("README.md", "bash", "hf-latent quickstart")]
    for block in code_blocks():
        lines = [line for line in block.text.splitlines() if line]
        texts = lines if block.language == "bash" else [block.text]
        found += [block._replace(text=x) for x in texts if not x.startswith(INSTALLING)]
    once = {block.text: block for block in reversed(found)}
    return [
        block
        for block in dict.fromkeys(found)
        if once[block.text] == block and is_recipe(block.text) == recipes
    ]


def shorten(command: str) -> list[str]:
    """Return the words of a command with short settings, as a Python program and its arguments."""
    words = shlex.split(command.replace("--resolution 64", "--resolution 32"))
    (program,) = (word for word in SHORT if any(w.split("/")[-1] == word for w in words))
    if words[:2] == ["accelerate", "launch"] and program in SECONDS_A_LOOK:
        words = [sys.executable, *words[2:]]
    elif words[0] == "python":
        words[0] = sys.executable
    else:
        words[0] = str(BIN / words[0])
    if is_recipe(command):  # the full set is not on every machine; minutes go before steps
        words += ["--data", "fashion_mnist", "--max_train_samples", "20"]
        words += ["--max_train_minutes", "null"]
    if seconds := SECONDS_A_LOOK.get(program):
        script = words[words[0] == sys.executable :]
        words = [sys.executable, "-c", TICKING, seconds, *script]
    return [*words, *SHORT[program].split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a reader would stand: the checkout's scripts, and a folder of images."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "train_scripts").symlink_to(ROOT / "train_scripts")
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / "path" / "to" / "images" / label).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"path/to/images/{label}/{i}.png")
            (folder / f"path/to/images/{label}/{i}.txt").write_text(f"some {label}\n")
    (folder / "prompts.txt").write_text("cats\ndogs\n")
    micrographs = str(folder / "path" / "to" / "micrographs")
    make_micrographs(MicrographsConfig(output_dir=micrographs, num_images=30))
    return folder


@pytest.fixture(scope="module")
def hub(folder) -> Iterator[LoopbackHub]:
    """A Hub on this machine, and a server that has imported the libraries for its programs."""
    with LoopbackHub() as hub:
        hub.add_token("hf_reader", "user")
        forked.warm(ENVIRONMENT | hub_environment(hub, folder))
        yield hub


def hub_environment(hub: LoopbackHub, folder: Path) -> dict[str, str]:
    return {**hub.environment(folder, "hf_reader"), "HF_HUB_OFFLINE": "0"}


# With one thread: two of one program wait for each other, and for the tests beside them.
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path, **variables: str) -> str:
    environment = ENVIRONMENT | variables
    process = forked.run(arguments, cwd=folder, env=environment)
    assert process.returncode == 0, f"{arguments}\n{process.stderr[-2000:]}"
    return process.stdout


def push_to_loopback_hub(arguments: list[str], folder: Path, hub: LoopbackHub) -> None:
    run(arguments, folder, **hub_environment(hub, folder))
    kind = "models" if "--model" in arguments else "datasets"
    files = hub.repos[kind, "user/name"].files("main")
    whole = {
        "datasets": {"README.md", "manifest.json", "train-000000.safetensors"},
        "models": {"README.md", "model_index.json", "pipeline.py", "unet/config.json"},
    }
    assert whole[kind] <= files.keys()


def run_python(block: Block, folder: Path) -> None:
    """Run a Python block; a comment that ends it and begins with `# ` tells what it prints."""
    text = block.text
    for long, short in SHORT_PYTHON.items():
        text = text.replace(long, short)
    (folder / "block.py").write_text(text)
    output = run([sys.executable, "-c", TICKING, "1", "block.py"], folder).strip()
    last = text.strip().splitlines()[-1]
    if last.startswith("# "):
        assert output.splitlines()[-1] == last.removeprefix("# ")


@pytest.mark.slow
@pytest.mark.parametrize("recipes", [False, True], ids=["pages", "recipes"])
def test_every_command_and_block_runs_in_order(folder, hub, recipes):
    for block in blocks_to_run(recipes):
        if block.language == "python":
            run_python(block, folder)
        elif " push " in block.text:
            push_to_loopback_hub(shorten(block.text), folder, hub)
        else:
            run(shorten(block.text), folder)


def test_the_two_commands_are_the_ones_that_ci_and_newcomers_run():
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e"
    first, second = re.findall(rf"^{re.escape(install)}.*", read("README.md"), re.MULTILINE)
    assert first == f"{install} . && .venv/bin/hf-latent quickstart"
    assert second == f'{install} ".[test]" && .venv/bin/pytest -n logical'
    assert second in (ROOT / ".ci" / "run").read_text()


def test_ci_runs_what_pre_commit_runs():
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 6
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(hooks) <= set(ci)
