"""What every command shares: flags and recipes into a frozen dataclass, errors into one line."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import jsonargparse
import yaml
from jsonargparse.typing import restricted_number_type

from hf_latent.errors import UserError

if TYPE_CHECKING:
    Seed: TypeAlias = int
    Share: TypeAlias = float
else:
    Seed = restricted_number_type(
        "Seed", int, [(">=", 0), ("<", 2**32)], docstring=f"int restricted to be ≥0 and <{2**32}"
    )
    Share = restricted_number_type(
        "Share", float, [(">=", 0), ("<", 1)], docstring="float restricted to be ≥0 and <1"
    )

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_LIMITS = {">": "above", "≥": "at least", "<": "below", "≤": "at most"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings whose values fit their types, made by a command line or in Python.

    A field's type says its range too: `PositiveInt` and the like of jsonargparse, `Literal`. A
    `__post_init__` calls `super().__post_init__()` first, and then checks what joins fields.
    """

    def __post_init__(self) -> None:
        """Give every value its type.

        Raises:
            UserError: if one does not fit; it names the flag, the type's range and the value.
        """
        kind: Any = type(self)
        types = get_type_hints(kind)
        for name, value in vars(self).items():
            if value is None and type(None) not in get_args(types[name]):
                raise UserError(f"--{name} needs a value, not null")
        try:
            # The parser changes lists in place, and another configuration may have the same list.
            values = _parser(kind).parse_object(deepcopy(vars(self))).as_dict()
        except jsonargparse.ArgumentError as error:
            raise UserError(_one_line(error, types)) from error
        # The restricted types are subclasses of int and float, which YAML does not know.
        for name, value in json.loads(json.dumps(values)).items():
            object.__setattr__(self, name, value)


Config = TypeVar("Config", bound=Settings)


@cache
def _parser(config_class: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class)
    return parser


def _one_line(error: Exception, types: dict[str, Any]) -> str:
    """Say what jsonargparse does not accept: the flag, what it takes and what was given."""
    message = " ".join(str(error).split())
    found = re.match(r'Parser key "(\w+)": ', message)
    if not found or found[1] not in types:
        return message.replace('Parser key "config"', "--config") + " (see --help)"
    name, value = found[1], message.rpartition(": ")[2]
    value = re.sub(r" (does not conform|not an? ).*", "", value)
    value = re.sub(r".*'NoneType'$", "null", value)
    return f"--{name} must be {describe_type(types[name])}, not {value}"


def describe_type(kind: Any) -> str:
    """Return what a setting's type accepts, in words.

    Args:
        kind: the annotation of a field of `Settings`.
    """
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(describe_type(x) for x in get_args(kind) if x is not type(None))
    if get_origin(kind) is list:
        return f"a list, each {describe_type(get_args(kind)[0])}"
    if kind in _KINDS:
        return _KINDS[kind]
    limits = re.findall(r"([>≥<≤])([\d.]+)", kind.__doc__ or "")
    range_text = " and ".join(f"{_LIMITS[sign]} {limit}" for sign, limit in limits)
    return f"{_KINDS[int if issubclass(kind, int) else float]} {range_text}"


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
        raise UserError(_one_line(error, get_type_hints(config_class))) from error
    values.pop("config")
    return config_class(**values)


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
