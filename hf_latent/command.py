"""What every command shares: flags and recipes into a frozen dataclass, errors into one line."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml

from hf_latent.errors import UserError

Config = TypeVar("Config")


def parse_config(
    config_class: type[Config], arguments: Sequence[str] | None = None, prog: str | None = None
) -> Config:
    """Read a command's configuration from `--config` recipe and flags; flags win.

    Args:
        config_class: a frozen dataclass whose docstring is the help text.
        arguments: the command line; None: the process's.
        prog: the command's name in messages.

    Returns:
        The configuration.

    Raises:
        UserError: for an unknown key or flag, or a value of the wrong type.
        SystemExit: after `--help` and `--print_config`.
    """
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML recipe; flags win over it")
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True  # --flag alone means --flag true
    try:
        values = parser.parse_args(arguments).as_dict()
    except UnicodeDecodeError as error:
        raise UserError(f"--config is not a YAML file in UTF-8 ({error.reason})") from error
    except jsonargparse.ArgumentError as error:
        message = re.sub(r"\s+", " ", str(error))
        message = re.sub(r'^Parser key "(\w+)": ', r"--\1: ", message)
        raise UserError(f"{message} (see --help)") from error
    values.pop("config")
    types = get_type_hints(config_class)
    for name, value in values.items():
        if value is None and type(None) not in get_args(types[name]):
            raise UserError(f"--{name} needs a value, not null")
    return config_class(**values)


def check_ranges(
    config: Any,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    share: Sequence[str] = (),
) -> None:
    """Refuse numbers out of range; fields that are None are passed over.

    Args:
        config: a configuration.
        positive: names of fields that must be above 0.
        not_negative: names of fields that must be 0 or above.
        share: names of fields that must be in [0, 1).

    Raises:
        UserError: naming the flag.
    """
    tests: list[tuple[Sequence[str], str, Callable[[float], bool]]] = [
        (positive, "above 0", lambda value: value > 0),
        (not_negative, "0 or above", lambda value: value >= 0),
        (share, "in [0, 1)", lambda value: 0 <= value < 1),
    ]
    for names, range_text, fits in tests:
        for name in names:
            value = getattr(config, name)
            if value is not None and not fits(value):
                raise UserError(f"--{name} must be {range_text}, not {value}")


def dump_config(config: Any, **additions: Any) -> str:
    """Write a configuration as the YAML that `--config` reads.

    Args:
        config: a dataclass.
        additions: fields to save with another value than the configuration's.

    Returns:
        YAML, one line a field.
    """
    return yaml.safe_dump(dataclasses.asdict(config) | additions, sort_keys=False)


def run_command(
    config_class: type[Config],
    command: Callable[[Config], Any],
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Run a command; a mistake that the user can mend becomes one line and exit status 2.

    Args:
        config_class: the command's configuration.
        command: what it does.
        arguments: the command line; None: the process's.
        prog: the command's name in messages.

    Raises:
        SystemExit: with status 2 after such a mistake.
    """
    try:
        command(parse_config(config_class, arguments, prog))
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
