"""Shell completion: a script that completes commands, flags, and the values of some flags."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from hf_latent.errors import UserError
from hf_latent.messages import Verbosity

if TYPE_CHECKING:
    from hf_latent.cli import Command


def completion_script(commands: Mapping[str, "Command"], shell: str) -> str:
    """Return a script for a shell, to be sourced by it.

    Args:
        commands: by name.
        shell: bash, zsh or tcsh.

    Raises:
        UserError: if the shell is not supported, or shtab is not installed.
    """
    if find_spec("shtab") is None:
        raise UserError("--print_completion needs shtab: pip install shtab")
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        shells = ", ".join(shtab.SUPPORTED_SHELLS)
        raise UserError(f"--print_completion {shell} must be one of {shells}")
    parser = argparse.ArgumentParser("hf-latent")
    groups = {"": parser.add_subparsers()}
    for name, command in commands.items():
        config = getattr(import_module(command.module), command.config)
        types = get_type_hints(config)
        group, _, word = name.rpartition(" ")
        if group not in groups:
            # Without help shtab ignores a parser.
            groups[group] = groups[""].add_parser(group, help=group).add_subparsers()
        flags = groups[group].add_parser(word, help=command.summary)
        for field in fields(config):
            flag: Any = flags.add_argument(f"--{field.name}", choices=_choices(types[field.name]))
            if flag.choices is None and str in (types[field.name], *get_args(types[field.name])):
                flag.complete = shtab.FILE
        recipe: Any = flags.add_argument("--config")
        recipe.complete = shtab.FILE
        flags.add_argument("--verbosity", choices=get_args(Verbosity))
    return str(shtab.complete(parser, shell))


def _choices(kind: Any) -> list[str] | None:
    """Return the values of a setting's type, if they are few."""
    if kind is bool:
        return ["true", "false"]
    parts = [kind] if get_origin(kind) is Literal else get_args(kind)
    words = [str(x) for part in parts if get_origin(part) is Literal for x in get_args(part)]
    return words or None
