"""What commands share: flags and recipes become a frozen dataclass, user errors one line."""

import dataclasses
import inspect
import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
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

from hf_latent.allocator import keep_freed_memory
from hf_latent.command_output import command_output
from hf_latent.errors import UserError
from hf_latent.messages import Verbosity, set_verbosity, start_messages

start_messages()

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

LARGEST = 2**53  # the whole numbers that JSON keeps
_TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_LIMITS = {">": "above", "≥": "at least", "<": "below", "≤": "at most"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of all configurations: every value fits the type of its field.

    A type may state a range: `PositiveInt` and the like of jsonargparse, `Literal`. A subclass's
    `__post_init__` calls `super().__post_init__()` first, then checks fields against each other.
    """

    def __post_init__(self) -> None:
        """Convert every value to its field's type.

        Raises:
            UserError: if a value does not fit; it names the flag, the type's range and the value.
        """
        kind: Any = type(self)
        types = get_type_hints(kind)
        for name, value in vars(self).items():
            if value is None and type(None) not in get_args(types[name]):
                raise UserError(f"--{name} needs a value, not null")
            for part in value if isinstance(value, list | tuple) else [value]:
                _check_value(name, part)
        try:
            # The parser changes lists in place, and two configurations may share a list.
            values = _parser(kind).parse_object(deepcopy(vars(self))).as_dict()
        except jsonargparse.ArgumentError as error:
            raise UserError(_describe_error(error, types)) from error
        # The restricted types are subclasses of int and float, which YAML does not know.
        for name, value in json.loads(json.dumps(values)).items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise UserError(f"--{name} must be a finite number, not {number}")
            object.__setattr__(self, name, value)


def _check_value(name: str, value: Any) -> None:
    """Refuse what no setting can mean; an empty path would mean the current folder."""
    if isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise UserError(f"--{name} needs a value, not an empty text or one with a null byte")
        if not value.isascii() and value.encode(errors="ignore").decode() != value:
            shown = value.encode(errors="backslashreplace").decode()
            raise UserError(f"--{name} {shown} is no UTF-8: rename it")
    if isinstance(value, int | float) and LARGEST < abs(value) < math.inf:
        raise UserError(f"--{name} {value} is too large: the largest number is {LARGEST}")


Config = TypeVar("Config", bound=Settings)


@cache
def _parser(config_class: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class)
    return parser


def _describe_error(error: Exception, types: dict[str, Any]) -> str:
    """Turn jsonargparse's error into one line: the flag, its type, the given value."""
    message = " ".join(str(error).split())
    found = re.match(r'Parser key "(\w+)": ', message)
    if not found or found[1] not in types:
        return message.replace('Parser key "config"', "--config") + " (see --help)"
    name, value = found[1], message.rpartition(": ")[2]
    value = re.sub(r" (does not conform|not an? ).*", "", value)
    value = re.sub(r".*'NoneType'$", "null", value)
    return f"--{name} must be {describe_type(types[name])}, not {value}"


def describe_type(kind: Any) -> str:
    """Return in words which values the type of a `Settings` field accepts."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(describe_type(x) for x in get_args(kind) if x is not type(None))
    if get_origin(kind) is list:
        return f"a list, each {describe_type(get_args(kind)[0])}"
    if kind in _TYPE_WORDS:
        return _TYPE_WORDS[kind]
    limits = re.findall(r"([>≥<≤])([\d.]+)", kind.__doc__ or "")
    range_text = " and ".join(f"{_LIMITS[sign]} {limit}" for sign, limit in limits)
    return f"{_TYPE_WORDS[int if issubclass(kind, int) else float]} {range_text}"


def describe_flag(action: Any) -> str:
    """Return what a flag sets, which values it accepts and its default.

    Args:
        action: jsonargparse's, of a field of `Settings`.
    """
    kind = action._typehint
    notes = ["required"] if action.required else []
    says_itself = kind is bool or str in (kind, *get_args(kind)) or get_origin(kind) is Literal
    if not says_itself:
        notes.append(describe_type(kind))
    if action.default is not None and not action.required:
        default = action.default
        notes.append(f"default: {str(default).lower() if kind is bool else default}")
    return f"{action.help} ({'; '.join(notes)})" if notes else action.help


def _join_lists(words: Sequence[str], actions: Sequence[Any]) -> list[str]:
    """Write the words after the flag of a list as one: `--flag A B` means `--flag [A,B]`.

    Args:
        words: the command line.
        actions: jsonargparse's, of all flags.
    """
    kinds = {flag: getattr(x, "_typehint", None) for x in actions for flag in x.option_strings}
    groups: list[list[str]] = []
    joined: list[str] = []
    for word in words:
        if not groups or word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    for flag, *values in groups:
        kind = kinds.get(flag)
        lists = [x for x in (kind, *get_args(kind)) if get_origin(x) is list]
        if lists and len(values) > 1:
            is_text = get_args(lists[0])[0] is str
            values = [json.dumps(values) if is_text else f"[{','.join(values)}]"]
        joined += [flag, *values]
    return joined


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Name types in words, and defaults only if there are any; do not break lines at hyphens."""

    def _get_help_string(self, action: Any) -> str:
        has_type = getattr(action, "_typehint", None) is not None
        return describe_flag(action) if has_type else super()._get_help_string(action)

    def _format_action_invocation(self, action: Any) -> str:
        flags = action.option_strings
        action.option_strings = [flag for flag in flags if not flag.endswith("+")]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = flags

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _load_recipe(text: str) -> Any:
    """Read YAML.

    Refuse a repeated key, a number like 1:30, which YAML 1.1 takes for 90, aliases, which may
    contain themselves, and jsonargparse's own keys.
    """
    nodes: list[Any] = [yaml.compose(text, yaml.SafeLoader)]
    seen = set()
    for node in nodes:  # grows in the loop
        if id(node) in seen:
            raise yaml.YAMLError("it has an alias (*): write the value itself")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if str(key).startswith("__"):
                    raise yaml.YAMLError(f"{key} is no setting")
            for key in {key for key in keys if keys.count(key) > 1}:
                raise yaml.YAMLError(f"{key} is given {keys.count(key)} times")
            nodes += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node and node.tag.endswith((":int", ":float")) and ":" in node.value:
            raise yaml.YAMLError(f"{node.value} is no number: write it in quotes to mean text")
    return jsonargparse.get_loader("yaml")(text)


jsonargparse.set_loader("recipe", _load_recipe, exceptions=(yaml.YAMLError,))


@cache
def _command_parser(config_class: type, prog: str | None) -> jsonargparse.ArgumentParser:
    """Create the parser of a command line."""
    summary = (inspect.getdoc(config_class) or "").partition("\n\n")[0]
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=summary,
        exit_on_error=False,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        parser_mode="recipe",
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="a YAML recipe; flags win over it"
    )
    parser.add_class_arguments(config_class, as_group=False)
    parser.add_argument(
        "--verbosity",
        type=Verbosity,
        default="info",
        help="Print messages of this level and above.",
    )
    required = []
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True  # --flag alone means --flag true
        if action.dest == "print_config":
            action.metavar, action.help = "", "print the configuration as YAML and exit"
        if action.required:
            required.append(f"{action.option_strings[0]} {action.dest.upper()}")
    usage = " ".join([parser.prog, *required, "[--flags]"])
    parser.usage = textwrap.fill(usage, 72, subsequent_indent="  ", break_on_hyphens=False)
    return parser


def parse_config(
    config_class: type[Config], arguments: Sequence[str] | None = None, prog: str | None = None
) -> Config:
    """Read a command's configuration from a recipe (`--config`) and flags; flags win.

    `--verbosity` is no setting of a command: it takes effect at once.

    Args:
        config_class: a frozen dataclass whose docstring is the help text.
        arguments: the command line; None: the process's own.
        prog: the command's name in messages.

    Raises:
        UserError: for an unknown key or flag, or a value of the wrong type.
        SystemExit: after `--help` and `--print_config`.
    """
    kind: Any = config_class
    parser = _command_parser(kind, prog)
    try:
        words = _join_lists(sys.argv[1:] if arguments is None else arguments, parser._actions)
        values = parser.parse_args(words).as_dict()
    except UnicodeDecodeError as error:
        raise UserError(f"--config is not a YAML file in UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise UserError("a value or the --config is nested too deeply: write it flat") from error
    except jsonargparse.ArgumentError as error:
        types = {**get_type_hints(config_class), "verbosity": Verbosity}
        raise UserError(_describe_error(error, types)) from error
    values.pop("config")
    set_verbosity(values.pop("verbosity"))
    return config_class(**values)


def dump_config(config: Any, **additions: Any) -> str:
    """Return a configuration as the YAML that `--config` reads, one line a field.

    Args:
        config: a dataclass.
        additions: fields to save with another value than the configuration's.
    """
    return yaml.safe_dump(dataclasses.asdict(config) | additions, sort_keys=False)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings that `dump_config` wrote, as a recipe is read.

    Raises:
        UserError: if there are none.
    """
    try:
        values = _load_recipe(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        cause = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{path} cannot be read ({cause})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} has no settings in it")
    return values


def run_command(
    config_class: type[Config],
    command: Callable[[Config], Any],
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parse the command line and run a command, as `command_output` says.

    Args:
        config_class: the command's configuration.
        command: called with the configuration.
        arguments: the command line; None: the process's own.
        prog: the command's name in messages.

    Raises:
        SystemExit: with status 2 after a user error, 130 after Ctrl-C.
    """
    with command_output():
        config = parse_config(config_class, arguments, prog)
        keep_freed_memory()
        command(config)
