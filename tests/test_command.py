from dataclasses import asdict, dataclass
from typing import Literal

import pytest

from hf_latent.command import dump_config, parse_config, run_command
from hf_latent.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Cook.

    Attributes:
        dish: what to cook.
        minutes: how long.
        heat: the setting.
        servings: for how many; unset, for whoever comes.
    """

    dish: str
    minutes: float = 5.0
    heat: Literal["low", "high"] = "low"
    salt: bool = False
    size: int | str = 32
    servings: int | None = 4


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
        (["--dish", "x", "--minutes", "long"], "--minutes: .*float"),
        (["--dish", "x", "--heat", "hell"], "--heat: .*'low', 'high'"),
        (["--dish", "x", "--spoon", "3"], "--spoon"),
        ([], "dish"),
        (["--config", "/nowhere/recipe.yaml"], "recipe.yaml"),
    ],
)
def test_bad_flags_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(Config, arguments)
    assert "\n" not in str(caught.value)


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
def test_a_users_mistake_is_one_line_and_status_2(error, capsys):
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


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(Config, print, ["--help"], prog="hf-latent cook")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: hf-latent cook" in text
    assert "how long. (type: float, default: 5.0)" in text
