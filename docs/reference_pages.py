"""Make the reference pages of the site from the code: one page a room, and one of all commands."""

import re
from importlib import import_module
from pathlib import Path

import jsonargparse
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hf_latent.cli import COMMANDS
from hf_latent.command import describe_flag

PACKAGE = Path(__file__).parents[1] / "hf_latent"
ROOMS = {
    "pipeline": "The four steps, and what travels with a saved model.",
    "models": "Autoencoders, denoisers and schedulers: presets, loading, the folded scale.",
    "data": "Images from any source, and the latent cache.",
    "evaluation": "Reconstruction, generation, memorisation, inspection.",
    "hub": "Cards, push and export.",
    "training": "The two trainings, and what runs them.",
    "experiments": "Quickstart, lesson, generate, sweep, benchmark.",
}
STEPS = ("encode", "add_noise", "denoise", "decode", "pipeline")


def room_page(room: str, summary: str) -> str:
    """Return the Markdown of one room: its modules that have something public, in order.

    Args:
        room: a folder of the package.
        summary: what it is for.
    """
    modules = sorted((PACKAGE / room).rglob("*.py"), key=page_order)
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in modules
        if path.name != "__init__.py"
    ]
    return "\n\n".join([f"# {room}", summary, *(f"::: {name}" for name in names)])


def page_order(path: Path) -> tuple[int, int, str]:
    """Return a sort key: the four steps first, then the files of a room before its folders."""
    step = STEPS.index(path.stem) if path.stem in STEPS else len(STEPS)
    return len(path.parts), step, path.as_posix()


def command_section(title: str, config: type, summary: str) -> str:
    """Return the Markdown of one command: what it does, and a table of its flags.

    Args:
        title: how it is called.
        config: its settings.
        summary: one line.
    """
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(config)
    rows = [
        f"| `--{action.dest}` | {cell(describe_flag(action))} |"
        for action in parser._actions
        if hasattr(action, "_typehint")
    ]
    head = ["| flag | what it sets |", "|---|---|"]
    return "\n".join([f"## {title}", "", summary, "", *head, *rows, ""])


def cell(text: str) -> str:
    """Return text that is one cell of a Markdown table, without the folder of whoever builds it."""
    return " ".join(text.split()).replace("|", "\\|").replace(str(Path.home()), "~")


def commands_page() -> str:
    """Return the Markdown of all commands."""
    sections = [
        command_section(
            f"hf-latent {name}",
            getattr(import_module(command.module), command.config),
            command.summary,
        )
        for name, command in COMMANDS.items()
    ]
    start = "Every setting is a flag, and a line of the YAML file that `--config` reads. Flags win."
    scripts = (
        "In `train_scripts/`, `train_vae.py` is `hf-latent train-autoencoder`, `encode_latents.py` "
        "is `encode`, `train_unet.py` is `train-denoiser`, `distill_unet.py` is "
        "`distill`, `synthesize_ema.py` is `synthesize-ema`."
    )
    return "\n".join(["# Commands", "", start, "", scripts, "", *sections])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages to the site (a hook of MkDocs)."""
    pages = {f"reference/{room}.md": room_page(room, text) for room, text in ROOMS.items()}
    pages["reference/commands.md"] = commands_page()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a notebook lead to pages (a hook; MkDocs does so for Markdown only)."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'href="(\w+)\.md"', r'href="../\1/"', html)
