from dataclasses import asdict, dataclass, replace
from typing import Literal

import pytest
from jsonargparse.typing import PositiveFloat, PositiveInt

from hf_latent.command import Seed, Settings, Share, dump_config, parse_config, run_command
from hf_latent.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Cook.

    Attributes:
        dish: what to cook.
        minutes: how long.
        heat: the setting.
        servings: for how many; unset, for whoever comes.
        spices: grams of each.
        done: how far.
        seed: of the cook.
    """

    dish: str
    minutes: float = 5.0
    heat: Literal["low", "high"] = "low"
    salt: bool = False
    size: int | str = 32
    servings: PositiveInt | None = 4
    spices: list[PositiveFloat] | None = None
    done: Share = 0.5
    seed: Seed = 0


def test_flags_win_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dish: soup\nminutes: 1e1\nsize: 48,80\n")
    config = parse_config(Config, ["--config", str(recipe), "--minutes", "3", "--salt", "true"])
    assert config == Config(dish="soup", minutes=3.0, salt=True, size="48,80")


def test_a_dumped_configuration_is_a_recipe(tmp_path):
    config = Config(dish="pie", minutes=0.5, heat="high", salt=True, servings=None)
    recipe = tmp_path / "config.yaml"
    recipe.write_text(dump_config(config, size=7))
    assert parse_config(Config, ["--config", str(recipe)]) == Config(**asdict(config) | {"size": 7})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dish", "x", "--minutes", "long"], "^--minutes must be a number, not long$"),
        (["--dish", "x", "--heat", "hell"], "^--heat must be one of low, high, not hell$"),
        (["--dish", "x", "--servings", "0"], "^--servings must be a whole number above 0, not 0$"),
        (["--dish", "x", "--done", "1"], "^--done must be a number at least 0 and below 1, not 1$"),
        (["--dish", "x", "--spoon", "3"], "--spoon"),
        ([], "dish"),
        (["--config", "/nowhere/recipe.yaml"], "recipe.yaml"),
    ],
)
def test_bad_flags_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(Config, arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dish": 3}, "--dish must be text, not 3"),
        ({"dish": None}, "--dish needs a value, not null"),
        ({"minutes": "long"}, "--minutes must be a number, not long"),
        ({"heat": "hell"}, "--heat must be one of low, high, not hell"),
        ({"salt": 3}, "--salt must be true or false, not 3"),
        ({"size": 2.5}, "--size must be a whole number or text, not 2.5"),
        ({"servings": -1}, "--servings must be a whole number above 0, not -1"),
        ({"servings": 2.5}, "--servings must be a whole number above 0, not 2.5"),
        ({"spices": [1, 0]}, r"--spices must be a list, each a number above 0, not \[1.0, 0\]"),
        ({"done": 1.5}, "--done must be a number at least 0 and below 1, not 1.5"),
        ({"seed": 2**32}, "--seed must be a whole number at least 0 and below 4294967296, not"),
    ],
)
def test_values_given_in_python_are_checked_too(values, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Config(**{"dish": "soup"} | values)


def test_values_are_converted_to_plain_types():
    arguments = ["--dish", "soup", "--minutes", "3", "--servings", "2", "--spices", "[1,2]"]
    made = Config(dish="soup", minutes=3, servings=2, spices=(1, 2))
    assert made == parse_config(Config, arguments)
    assert (made.minutes, made.spices) == (3.0, [1.0, 2.0])
    for config in (made, parse_config(Config, arguments)):
        assert {type(value) for value in asdict(config).values()} <= {str, bool, int, float, list}
        assert type(config.spices[0]) is float


@dataclass(frozen=True, kw_only=True)
class Order(Settings):
    """Order.

    Attributes:
        dishes: one or several.
        tables: their numbers.
        note: for the cook.
    """

    dishes: list[str] | str
    tables: list[int] | int | str = "1,2"
    note: str = "none"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dishes", "soup"], Order(dishes="soup")),
        (["--dishes", "soup", "fish pie", "[a,b]"], Order(dishes=["soup", "fish pie", "[a,b]"])),
        (["--dishes", "[soup,pie]", "--note", "hot"], Order(dishes=["soup", "pie"], note="hot")),
        (["--tables", "3", "-4", "--dishes", "7"], Order(dishes="7", tables=[3, -4])),
        (["--tables", "3,4", "--dishes=soup"], Order(dishes="soup", tables="3,4")),
    ],
)
def test_the_flag_of_a_list_takes_several_words(words, expected):
    assert parse_config(Order, words) == expected


def test_other_flags_take_one_word():
    with pytest.raises(UserError, match="cold"):
        parse_config(Order, ["--dishes", "soup", "--note", "hot", "cold"])


def test_a_changed_copy_does_not_change_the_first_ones_list():
    first = Config(dish="soup", spices=[1.5, 2.5])
    replace(first)
    assert [type(value) for value in first.spices] == [float, float]
    assert "spices:\n- 1.5\n- 2.5\n" in dump_config(first)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("dish: soup\nminutes: 3\nminutes: 4\n", "minutes is given 2 times"),
        ("dish: soup\nminutes: 1:30\n", "1:30 is no number"),
        ("dish: soup\nminutes: 1:30.5\n", "1:30.5 is no number"),
        ("dish: soup\nspices: [1, 2:30]\n", "2:30 is no number"),
    ],
)
def test_a_recipe_that_yaml_would_read_otherwise_is_refused(tmp_path, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(UserError, match=message):
        parse_config(Config, ["--config", str(path)])


@pytest.mark.parametrize("flag", ["--minute", "--dis", "--serving", "--sal"])
def test_a_flag_is_not_abbreviated(flag):
    with pytest.raises(UserError, match=f"unrecognized arguments: {flag}"):
        parse_config(Config, ["--dish", "soup", flag, "3"])


def test_unknown_key_in_a_recipe_is_refused(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dish: soup\nminuts: 3\n")
    with pytest.raises(SystemExit) as caught:
        run_command(Config, print, ["--config", str(recipe)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "minuts" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("error", [UserError("no\nsalt"), PermissionError(13, "denied", "/x")])
def test_a_user_error_is_one_line_and_status_2(error, capsys):
    def cook(config):
        raise error

    with pytest.raises(SystemExit) as caught:
        run_command(Config, cook, ["--dish", "soup"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_a_bug_keeps_its_traceback():
    def cook(config):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_command(Config, cook, ["--dish", "soup"])


def help_of(capsys, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as caught:
        run_command(Config, print, ["--help"], prog="hf-latent cook")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_is_the_docstring_with_types_in_words(capsys, monkeypatch):
    text = help_of(capsys, 120, monkeypatch)
    assert text.startswith("usage: hf-latent cook --dish DISH [--flags]\n\nCook.\n")
    for line in (
        "what to cook. (required)",
        "how long. (a number; default: 5.0)",
        "the setting. (default: low)",
        "{low,high}",
        "for how many; unset, for whoever comes. (a whole number above 0; default: 4)",
        "grams of each. (a list, each a number above 0)",
        "how far. (a number at least 0 and below 1; default: 0.5)",
        "print the configuration as YAML and exit",
    ):
        assert line in text
    assert "+" not in text  # the flags that append to a list


def test_help_does_not_break_words_at_hyphens(capsys, monkeypatch):
    for line in help_of(capsys, 50, monkeypatch).splitlines():
        assert len(line) <= 50
        assert not line.endswith("-")
